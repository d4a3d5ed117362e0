"""Photos that do not follow from the process."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages import fusion
from stages.datasets.records import Record, Records, Tokens, packed
from stages.fusion.deep.process_to_result import ProcessToResult
from stages.training import Run
from stages.types import Refusal

WIDTHS = {"image": 6, "video": 8, "audio": 5, "series": 2}
OPTIONS = {"hidden": 48, "steps": 250, "learning_rate": 5e-3, "dropout": 0.0, "modality_dropout": 0.1}
AXES = {name: np.random.default_rng(7).normal(size=(3, width)) for name, width in WIDTHS.items()}


def welds(seed: int, count: int = 200, wrong: float = 0.3) -> Records:
    """A state of three numbers makes the film, and half of it the sound; the photos show it or its opposite, as the sign of a sensor says. A bad weld has the
    photos of another weld, so that each of its modalities by itself is that of a good one."""
    random = np.random.default_rng(seed)
    state, sign = random.normal(size=(count, 3)), random.choice([-1.0, 1.0], size=count)
    bad = random.random(count) < wrong
    photos = np.where(bad, random.permutation(count), np.arange(count))
    found = []
    for number in range(count):
        noise = {name: 0.1 * random.normal(size=(4, width)) for name, width in WIDTHS.items()}
        values = {
            "image": sign[photos[number]] * state[photos[number]] @ AXES["image"] + noise["image"],
            "video": state[number] @ AXES["video"] + noise["video"],
            "audio": state[number] @ AXES["audio"] + 5 * noise["audio"],
            "series": np.array([sign[number], 0.0]) + noise["series"],
        }
        tokens = {name: Tokens(torch.from_numpy(one.astype(np.float32)), torch.linspace(0, 1, 4)) for name, one in values.items()}
        found.append(Record(f"w{seed}-{number}", tokens, int(bad[number]), fault="overlap" if bad[number] else ""))
    return packed(found, WIDTHS)


def fit(train: Records, val: Records, **options) -> ProcessToResult:
    return fusion.build("deep.process_to_result", OPTIONS | options, at=()).fit(train, val, Run(seed=0, quiet=True))


TRAIN, VAL, TEST = welds(0, 400), welds(1, 100), welds(2, 300)


@pytest.fixture(scope="module")
def fitted():
    return fit(TRAIN, VAL)


def area(detector: ProcessToResult, given: Records) -> float:
    return roc_auc_score(given.label, detector.score(given))


def test_photos_of_another_weld_are_found_which_no_modality_shows_by_itself(fitted):
    assert area(fitted, TEST) > 0.9
    distances = fusion.build("classical.mahalanobis", {}, at=()).fit(TRAIN, VAL, Run(seed=0, quiet=True))
    assert roc_auc_score(TEST.label, distances.score(TEST.only(["image"]))) < 0.65


def test_the_sensors_decide_what_the_same_film_should_lead_to(fitted):
    without = area(fitted, TEST.only(["image", "video", "audio"]))
    assert area(fitted, TEST) > without + 0.15
    turned = TEST.tokens["series"]
    turned = TEST._replace(tokens=TEST.tokens | {"series": turned._replace(values=-turned.values)})
    good = TEST.label == 0
    assert (fitted.score(turned)[good] > fitted.score(TEST)[good]).float().mean() > 0.95


def test_film_or_sound_may_be_missing(fitted):
    assert area(fitted, TEST.only(["image", "video", "series"])) > 0.85
    assert area(fitted, TEST.only(["image", "audio", "series"])) > 0.75


def test_without_photos_or_without_film_and_sound_nothing_is_known(fitted):
    for left in (["video", "audio", "series"], ["image", "series"], ["image"]):
        assert torch.equal(fitted.score(TEST.only(left)), torch.full((TEST.samples,), fitted.nothing))
    good = TEST.take((TEST.label == 0).nonzero()[:, 0].tolist())
    assert fitted.nothing == pytest.approx(float(fitted.score(good).mean()), abs=0.1)


def test_the_score_is_a_distance_of_two_directions(fitted):
    score = fitted.score(TEST)
    assert (0 <= score).all() and (score <= 2).all()


def test_the_state_that_is_kept_is_the_best_on_good_validation_welds():
    run = Run(seed=0, quiet=True)
    fusion.build("deep.process_to_result", OPTIONS | {"steps": 60}, at=()).fit(TRAIN, VAL, run)
    again = fit(TRAIN, VAL, steps=60)
    good = VAL.take((VAL.label == 0).nonzero()[:, 0].tolist())
    assert float(again.score(good).mean()) == pytest.approx(min(row["val_loss"] for row in run.history), abs=1e-5)


def test_what_has_no_photos_or_no_process_is_refused_and_a_process_without_sensors_is_not():
    def only(*names: str) -> list[Records]:
        return [one._replace(tokens={name: one.tokens[name] for name in names}) for one in (TRAIN, VAL)]

    with pytest.raises(Refusal, match="need image and video or audio"):
        fit(*only("video", "series"))
    with pytest.raises(Refusal, match="they have image, series"):
        fit(*only("image", "series"))
    assert fit(*only("image", "audio"), steps=5).score(TEST.only(["image", "audio"]).take([0])).isfinite().all()
    with pytest.raises(Exception, match="different modalities"):
        fit(TRAIN, VAL, sensors="image")
