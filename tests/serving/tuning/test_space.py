"""What a search may try, and that it tries the same again."""

from typing import Literal

import numpy as np
import pytest

from stages import detectors, params
from stages.params import ParamsError
from stages.serving.tuning.space import Choice, Range, as_json, propose, read_space, space_of

LAYERS = ["layer1", "layer2", "layer3"]


class Toy:
    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer2", "layer3"),
        mode: Literal["a", "b"] = "a",
        flag: bool = True,
        channels: int | None = None,
        count: int = 2,
        rate: float = 0.01,
        keep_ratio: float = 0.4,
        variance: float = 0.97,
        zero: float = 0.0,
        steps: int = 100,
        name: str = "x",
    ) -> None: ...


def test_the_space_by_hand():
    now = as_json(params.options(Toy, {}, at=("models", "toy")))
    space = space_of(Toy, now, LAYERS)
    runs = [["layer1"], ["layer1", "layer2"], LAYERS, ["layer2"], ["layer2", "layer3"], ["layer3"]]
    assert space == {
        "layers": Choice(tuple(runs)),
        "mode": Choice(("a", "b")),
        "flag": Choice((False, True)),
        "count": Range(1, 8, integer=True),
        "rate": Range(0.0025, 0.04),
        "keep_ratio": Range(0.1, 1.0),
        "variance": Range(pytest.approx(0.88), pytest.approx(0.9925), from_one=True),
    }


def test_the_value_of_params_yaml_is_the_centre_not_the_class_default():
    now = as_json(params.options(Toy, {"channels": 40, "rate": 1.0}, at=("models", "toy")))
    space = space_of(Toy, now, LAYERS)
    assert space["channels"] == Range(10, 160, integer=True) and space["rate"] == Range(0.25, 4.0)


def test_layers_that_the_store_does_not_hold_are_left_alone():
    assert "layers" not in space_of(Toy, {"layers": ["fine"]}, LAYERS)


@pytest.mark.parametrize(
    "option", [Range(1, 64, integer=True), Range(0.001, 0.1), Range(0.88, 0.9925, from_one=True), Range(0, 1, log=False)]
)
def test_draws_stay_inside_and_fill_the_range_evenly(option):
    rng = np.random.default_rng(0)
    drawn = np.array([option.draw(rng) for _ in range(2000)])
    assert drawn.min() >= option.low and drawn.max() <= option.high
    middle = {True: 1 - np.sqrt((1 - option.low) * (1 - option.high)), False: np.sqrt(option.low * option.high)}[option.from_one]
    share = (drawn < (middle if option.log else 0.5)).mean()
    assert share == pytest.approx(0.5, abs=0.06)


def test_a_step_is_near_what_it_starts_from():
    rng = np.random.default_rng(0)
    steps = [Range(0.01, 100.0).draw(rng, near=1.0) for _ in range(500)]
    assert np.mean([0.1 < step < 10 for step in steps]) > 0.7
    assert {Choice(("a", "b", "c")).draw(rng, near="a") for _ in range(50)} == {"b", "c"}


def test_proposals_depend_on_seed_number_and_best_alone():
    now, space = {"rate": 1.0, "count": 2}, {"rate": Range(0.25, 4), "count": Range(1, 8, integer=True)}
    first = [propose(space, now, {"rate": 2.0}, [{}], number, seed=3) for number in range(1, 9)]
    assert first == [propose(space, now, {"rate": 2.0}, [{}], number, seed=3) for number in range(1, 9)]
    assert first != [propose(space, now, {"rate": 2.0}, [{}], number, seed=4) for number in range(1, 9)]


def test_odd_trials_search_everywhere_even_ones_beside_the_best():
    now = {f"option{place}": 1.0 for place in range(6)}
    space, best = {name: Range(0.25, 4.0) for name in now}, {"option0": 3.0, "option1": 0.3, "option2": 2.0}
    kept = {number: len(best.items() & propose(space, now, best, [{}], number, seed=0).items()) for number in range(1, 41)}
    assert all(kept[number] >= 1 for number in range(2, 41, 2)) and all(kept[number] == 0 for number in range(1, 41, 2))
    undone = [propose(space, now, best, [{}], number, seed=0) for number in range(2, 41, 2)]
    assert any(changes.items() < best.items() for changes in undone)  # what does not help is taken back


def test_a_space_that_is_used_up_ends_the_search_without_a_trial_twice():
    now, space = {"mode": "a", "flag": True}, {"mode": Choice(("a", "b")), "flag": Choice((False, True))}
    tried = [{}]
    while (changes := propose(space, now, tried[-1], tried, len(tried), seed=0)) is not None:
        tried.append(changes)
    assert len(tried) == 4 and {} not in tried[1:]


def test_every_detector_has_a_space_or_no_options_and_each_value_in_it_can_be_written():
    searched = 0
    for name in detectors.known():
        factory = detectors.load(name)
        now = as_json(params.options(factory, {}, at=("models", name)))
        space = space_of(factory, now, LAYERS)
        assert not set(space) & {"epochs", "steps", "patience", "search", "backbone"}, name
        searched += bool(space)
        for option, values in space.items():
            assert values.draw(np.random.default_rng(0)) is not None, (name, option)
    assert searched >= 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("coreset_ration: [0.1]", "no option 'coreset_ration'; did you mean 'coreset_ratio'?"),
        ("coreset_ratio: 0.1", "must be a list of values, or {low, high, log}"),
        ("coreset_ratio: {low: 0, high: 1, log: true}", "above 0 where log"),
        ("coreset_ratio: {low: 2, high: 1}", "low < high"),
        ("- a", "must hold a table"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_written_space_with_a_mistake_is_refused(tmp_path, text, said):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ParamsError) as error:
        read_space(tmp_path / "space.yaml", ["coreset_ratio", "reweighting"])
    assert said in str(error.value)


def test_a_written_space_is_all_that_is_searched(tmp_path):
    (tmp_path / "space.yaml").write_text("steps: [10, 20]\nrate: {low: 0.1, high: 1.0, log: true}\ncount: {low: 1, high: 3}\n")
    space = read_space(tmp_path / "space.yaml", ["steps", "rate", "count", "mode"])
    assert space == {"steps": Choice((10, 20)), "rate": Range(0.1, 1.0), "count": Range(1, 3, integer=True, log=False)}
