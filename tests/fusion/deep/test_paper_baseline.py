"""The published baseline: what its scores are made of, and which of them it believes."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages import fusion
from stages.datasets.records import Record, Records, Tokens, packed
from stages.fusion.deep.paper_baseline import PAPER, PaperBaseline
from stages.training import Run
from stages.types import Refusal

WIDTHS = {"audio": 8, "video": 10, "image": 3}
OPTIONS = {"audio_width": 24, "audio_code": 3, "video_widths": [24, 4], "dropout": 0.0, "audio_rate": 1e-2, "video_rate": 1e-2, "steps": 60}


def welds(seed: int, shown: str, count: int = 80, short: bool = False) -> Records:
    """Twelve tokens each, which three numbers make; of a bad weld one modality has noise in other directions. short: in two tokens of the twelve only."""
    random, axes = np.random.default_rng(seed), np.random.default_rng(99)
    mixing = {name: axes.normal(size=(3, width)) for name, width in WIDTHS.items()}
    found = []
    for number in range(count):
        label = number % 2
        state = random.normal(size=(12, 3))
        tokens = {}
        for name, width in WIDTHS.items():
            values = state @ mixing[name] + 0.1 * random.normal(size=(12, width))
            if label and name == shown:
                at = slice(5, 7) if short else slice(None)
                values[at] += 1.5 * random.normal(size=values[at].shape)
            tokens[name] = Tokens(torch.from_numpy(values.astype(np.float32)), torch.linspace(0, 1, 12))
        found.append(Record(f"w{seed}-{number}", tokens, label, fault="porosity" if label else ""))
    return packed(found, WIDTHS)


def fit(train: Records, val: Records, **options) -> PaperBaseline:
    return fusion.build("deep.paper_baseline", OPTIONS | options, at=()).fit(train, val, Run(seed=0, quiet=True))


@pytest.fixture(scope="module")
def both():
    """By the modality that shows the faults a fit, and records to judge."""
    return {shown: (fit(welds(0, shown), welds(1, shown)), welds(2, shown)) for shown in ("audio", "video")}


def test_it_believes_what_shows_the_faults(both):
    weights = {shown: float(detector.weight) for shown, (detector, _) in both.items()}
    assert weights["audio"] > 0.3 and weights["video"] < 0.1  # of the sound, from a grid that has 0.37 in its favour
    for detector, test in both.values():
        assert roc_auc_score(test.label, detector.score(test)) > 0.9


def test_the_weight_is_the_best_of_the_grid_on_validation_and_nearest_to_the_papers(both):
    detector, _ = both["audio"]
    val = welds(1, "audio")
    with torch.no_grad():
        scores, there = detector._scores(detector.fitting(val))
    areas = [roc_auc_score(val.label, (scores @ torch.tensor([w, 1 - w], dtype=torch.float64))) for w in np.linspace(0, 1, 101)]
    best = np.flatnonzero(np.isclose(areas, max(areas), atol=1e-12)) / 100
    assert there.all() and float(detector.weight) == pytest.approx(best[np.abs(best - PAPER).argmin()])


def test_without_both_labels_in_validation_it_is_the_papers():
    train = welds(0, "audio", 20)
    val = welds(1, "audio")
    for given in (val.take([]), val.take(list(range(0, 80, 2)))):
        assert float(fit(train, given, steps=5).weight) == PAPER


def test_good_training_welds_have_mean_0_and_deviation_1_in_each(both):
    detector, _ = both["video"]
    train = welds(0, "video")
    with torch.no_grad():
        scores = detector._scores(detector.fitting(train.take(list(range(0, 80, 2)))))[0]
    torch.testing.assert_close(scores.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_weld_that_lacks_one_is_judged_by_the_other_and_one_that_lacks_both_is_a_typical_good_one(both):
    detector, test = both["audio"]
    with torch.no_grad():
        scores = detector._scores(detector.fitting(test))[0].float()
    torch.testing.assert_close(detector.score(test.only(["audio", "image"])), scores[:, 0])
    torch.testing.assert_close(detector.score(test.only(["video"])), scores[:, 1])
    assert (detector.score(test.only(["image"])) == 0).all() and detector.nothing == 0


def test_the_film_is_judged_by_its_worst_two_seconds():
    """Noise in two of twelve tokens: a window of that length sees it better than the mean over the film."""
    train, val, test = (welds(seed, "video", short=True) for seed in range(3))
    detector = fit(train, val, window_s=5.0, clock_s=30.0, video_rate=3e-3, steps=150)
    short = roc_auc_score(test.label, detector.score(test.only(["video"])))
    detector.window = 1.0
    assert short > 0.95 and short > roc_auc_score(test.label, detector.score(test.only(["video"]))) + 0.05


def test_a_data_set_without_a_film_and_sizes_that_cannot_be_are_refused():
    train = welds(0, "audio", 20)
    silent = train._replace(tokens={name: one for name, one in train.tokens.items() if name != "video"})
    with pytest.raises(Refusal, match="no modality 'video'"):
        fit(silent, silent)
    with pytest.raises(Exception, match="two modalities"):
        fit(train, train, video="audio")
    with pytest.raises(Exception, match="widths"):
        fit(train, train, video_widths=[])
