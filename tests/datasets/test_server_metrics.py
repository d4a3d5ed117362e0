"""The generated data set `server`: same seed, same bytes, and no part of it shifts another's random numbers."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets import server_metrics
from stages.datasets.injected import ADDING, KINDS
from stages.datasets.samples import DataError
from stages.datasets.server_metrics import COMPLEXITY, GAINS, VARIABLES, generate, normal, read

STEPS = 12_000
TIME = np.arange(STEPS, dtype=float)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = generate(STEPS, seed=1), generate(STEPS, seed=1), generate(STEPS, seed=2)
    assert first.values.tobytes() == again.values.tobytes() and first.regions == again.regions
    assert not np.array_equal(first.values, other.values, equal_nan=True)


def test_the_label_is_one_within_the_regions_and_nowhere_else():
    made = generate(STEPS, interval_scale=0.5)
    expected = np.zeros(STEPS)
    for region in made.regions:
        expected[region.start : region.stop] = 1
    assert made.values.shape == (STEPS, 8) and made.values.dtype == np.float32
    assert np.array_equal(made.label, expected) and 0 < expected.mean() < 0.5


def test_missing_values_are_those_of_a_dropout():
    made = generate(STEPS, interval_scale=0.3)
    dropped = [region for region in made.regions if region.kind == "dropout"]
    missing = np.isnan(made.values)
    assert missing.sum() == sum(region.stop - region.start for region in dropped) > 0
    assert all(missing[region.start : region.stop, VARIABLES.index(region.variables[0])].all() for region in dropped)


def test_outside_the_regions_a_recording_is_as_if_nothing_was_put_in():
    kinds = [kind for kind in KINDS if kind != "seasonal_break"]  # after one, the periods have moved on
    made = generate(STEPS, kinds=kinds, interval_scale=0.5)
    assert np.array_equal(made.values[made.label == 0], generate(STEPS, kinds=[]).values[made.label == 0])


def test_leaving_a_kind_out_does_not_shift_another():
    both, one = (generate(STEPS, kinds=kinds, interval_scale=0.7) for kinds in (["spike", "dropout"], ["spike"]))
    kept = [region for region in both.regions if region.kind == "spike"]
    assert kept and set(kept) <= set(one.regions)
    for region in kept:
        assert np.array_equal(both.values[region.start : region.stop], one.values[region.start : region.stop])


def test_each_complexity_changes_something_and_leaves_the_random_numbers_of_the_others_alone():
    """What a toggle adds does not depend on which others are on, where it adds at all."""
    everything = normal(TIME, 3)
    for name in COMPLEXITY:
        assert not np.array_equal(everything, normal(TIME, 3, [other for other in COMPLEXITY if other != name])), name
    with_wander, without = (normal(TIME, 3, {"bumps", *more})[:, VARIABLES.index("network")] for more in (["wander"], []))
    alone, plain = (normal(TIME, 3, more)[:, VARIABLES.index("network")] for more in (["wander"], []))
    assert np.allclose(with_wander - without, alone - plain, atol=1e-9)


def test_a_seasonal_break_runs_faster_without_a_jump():
    """With the noise the same, no step from one row to the next is larger than elsewhere."""
    made, usual = (generate(STEPS, kinds=kinds, complexity=[], seed=4, interval_scale=0.3) for kinds in (["seasonal_break"], []))
    first = made.regions[0]
    before = first.start - 50  # threads are smoothed
    assert np.array_equal(made.values[:before], usual.values[:before])
    assert not np.allclose(made.values[first.start : first.stop], usual.values[first.start : first.stop])
    change = (made.values - usual.values)[:, VARIABLES.index("cpu")]
    assert np.abs(np.diff(change)).max() < 0.06 * 2 * np.pi / 83 * 2 * 2


def test_children_follow_the_cpu():
    values = normal(TIME, 0, complexity=[])
    slow = np.apply_along_axis(lambda column: np.convolve(column, np.ones(25) / 25, "valid"), 0, values)
    for name in ("memory", "response", "threads", "queue"):
        fit = np.polyfit(slow[:, 0], slow[:, VARIABLES.index(name)], 1)[0]
        assert 0.1 < fit < 0.4, (name, fit)


def test_regimes_change_the_level_and_hand_over_slowly():
    level, swing = server_metrics._regimes(60_000, np.random.default_rng(0))
    assert np.ptp(level) > 0.01 and 0.7 < swing.min() <= swing.max() < 1.3
    assert np.abs(np.diff(level)).max() < 0.12 / 4 / 150 * 1.01


def test_a_wander_stays_within_bounds_and_forgets_at_its_pace():
    wander = server_metrics._wander(200_000, 4, 0.002, np.random.default_rng(0))
    assert wander.std() == pytest.approx(1, rel=0.15)
    later = np.mean(wander[500:] * wander[:-500])
    assert later == pytest.approx(np.exp(-1), abs=0.12)


def test_about_three_steps_in_a_hundred_are_anomalous():
    assert np.mean([generate(60_000, seed=seed, interval_scale=3.5).label.mean() for seed in range(3)]) == pytest.approx(0.033, abs=0.006)
    assert np.mean([generate(60_000, seed=seed, kinds=ADDING).label.mean() for seed in range(3)]) == pytest.approx(0.038, abs=0.006)


def test_categories_differ_in_the_strength_of_the_same_anomalies():
    read_in = {recording.category: recording for recording in read(Path("."), steps=STEPS, interval_scale=0.7)}
    assert list(read_in) == list(GAINS)
    places = [[(region.start, region.stop, region.kind) for region in recording.regions] for recording in read_in.values()]
    assert places[0] == places[1] == places[2]
    easy, hard = read_in["easy"], read_in["hard"]
    for strong, weak in zip(easy.regions, hard.regions):
        if KINDS[strong.kind].scaled and strong.kind in ADDING and strong.kind != "cpu_saturation":
            assert weak.magnitude == pytest.approx(0.15 * strong.magnitude, rel=1e-3)


def test_recordings_of_a_category_are_not_alike():
    names = [(recording.category, recording.name, float(recording.values[0, 0])) for recording in read(Path("."), steps=1000, recordings=2)]
    assert len({name[:2] for name in names}) == 6 and names[0][2] != names[1][2]


@pytest.mark.parametrize(
    ("options", "said"), [({"steps": 10}, "steps"), ({"recordings": 0}, "recordings"), ({"kinds": ("spyke",)}, "spike")]
)
def test_what_cannot_be_made_is_refused_by_name(options, said):
    with pytest.raises(DataError, match=said):
        list(read(Path("."), **options))
