"""WinCLIP against its formulas: by hand, by brute force over windows, and what it must not do."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from stages.detectors.zero_shot.maths import prompts
from stages.detectors.zero_shot.winclip import WinCLIP, harmonic_mean, spread
from stages.training import Run
from stages.types import NotFitted, Refusal
from tests.arrays import ArrayBatches, features_of, normal_pixels, plant_defect, read_aloud

KNOWN, NEW = features_of(normal_pixels(4, seed=1)), features_of(normal_pixels(3, seed=2))
NONE = {layer: value[:0] for layer, value in KNOWN.items()}


def run(text=read_aloud, category="metal_nut") -> Run:
    return Run(seed=0, quiet=True, text=text, category=category)


def fitted(features=NONE, session=None, **options) -> WinCLIP:
    return WinCLIP(**options).fit(ArrayBatches(features), None, session or run())


# --- sentences ---


def test_the_ensemble_is_seven_and_four_states_in_twenty_one_templates():
    good, bad = prompts.sentences(prompts.NORMAL, "nut"), prompts.sentences(prompts.ANOMALOUS, "nut")
    assert (len(good), len(bad)) == (147, 84) and len(set(good + bad)) == 231
    assert "a jpeg corrupted photo of a flawless nut." in good and "a photo of the nut with damage for visual inspection." in bad
    assert "a cropped photo of the nut." in good and "a cropped photo of a nut." not in good


def test_the_mean_is_taken_before_and_not_after_the_norm():
    """Sentences of unequal length: a mean of unit vectors, or of softmaxes, would be another direction."""

    def uneven(sentences):
        return torch.stack(
            [torch.tensor([9.0, 0.0]) if "for anomaly detection" in sentence else torch.tensor([0.0, 1.0]) for sentence in sentences]
        )

    found = prompts.ensemble(uneven, "nut")
    wanted = F.normalize(torch.tensor([9.0 * 2 / 21, 19 / 21]), dim=0)
    torch.testing.assert_close(found, torch.stack([wanted, wanted]))


def test_the_order_of_sentences_changes_nothing(monkeypatch):
    before = prompts.ensemble(read_aloud, "nut")
    monkeypatch.setattr(prompts, "NORMAL", prompts.NORMAL[::-1])
    monkeypatch.setattr(prompts, "TEMPLATES", prompts.TEMPLATES[::-1])
    torch.testing.assert_close(prompts.ensemble(read_aloud, "nut"), before)


def test_the_object_is_called_as_its_category_or_as_one_says():
    heard = []
    session = run(lambda sentences: heard.append(sentences[0]) or read_aloud(sentences))
    fitted(session=session)
    fitted(session=session, objects={"metal_nut": "hexagonal nut", "screw": "bolt"})
    assert heard == ["a cropped photo of the metal nut.", "a cropped photo of the hexagonal nut."]


# --- windows ---


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_patch_has_the_harmonic_mean_of_the_windows_that_cover_it(side):
    scores = torch.rand(6 - side, 7 - side, generator=torch.Generator().manual_seed(side)) + 0.01
    found = spread(scores, side)
    for row, column in itertools.product(range(5), range(6)):
        covering = [
            scores[top, left]
            for top, left in itertools.product(range(6 - side), range(7 - side))
            if top <= row < top + side and left <= column < left + side
        ]
        wanted = len(covering) / sum(1 / score for score in covering)
        torch.testing.assert_close(found[row, column], wanted)
    if side > 1:
        torch.testing.assert_close(found[0, 0], scores[0, 0])  # a corner is in one window


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=6))
def test_a_harmonic_mean_lies_between_the_least_and_the_mean(values):
    scores = torch.tensor(values, dtype=torch.float64)
    found = float(harmonic_mean(scores))
    assert scores.min() - 1e-9 <= found <= scores.mean() + 1e-9


def test_scores_of_zero_give_zero_and_no_infinity():
    assert spread(torch.zeros(3, 3), 2).max() < 1e-5 and spread(torch.zeros(3, 3), 2).isfinite().all()


# --- zero shots ---


def test_zero_shot_scores_are_the_softmax_over_good_and_bad():
    detector = fitted()
    text = prompts.ensemble(read_aloud, "metal nut")

    def zeta(vectors):  # (..., D)
        cosines = F.normalize(vectors, dim=-1) @ text.T / 0.07
        return cosines.exp()[..., 1] / cosines.exp().sum(dim=-1)

    found = detector.score(NEW)
    torch.testing.assert_close(found.image_score, zeta(NEW["image"][:, :, 0, 0]))
    windows = [spread(zeta(NEW[f"window{side}"][0].permute(1, 2, 0)), side) for side in (2, 3)]
    wanted = 3 / (1 / found.image_score[0] + 1 / windows[0] + 1 / windows[1])
    torch.testing.assert_close(detector._score({layer: NEW[layer][0] for layer in detector.needs.layers})[1], wanted)


def test_zero_shots_see_no_image():
    class Closed(ArrayBatches):
        def take(self, positions):
            raise AssertionError("an image was looked at")

    detector = WinCLIP().fit(Closed(NONE), Closed(KNOWN), run())
    assert len(detector.references_patches) == 0 and detector.score(NEW).image_score.isfinite().all()


def test_good_and_bad_are_not_mistaken_for_each_other():
    """An image that embeds as the sentences about bad objects do scores high, one as those about good ones by as much below a half."""
    text = prompts.ensemble(read_aloud, "metal nut")
    features = {layer: text.flip(0)[:, :, None, None].expand(-1, -1, *KNOWN[layer].shape[2:]) for layer in ("image", "window2", "window3")}
    found = fitted().score({**features, "patches": KNOWN["patches"][:2], "pixels": KNOWN["pixels"][:2]})
    bad = torch.sigmoid((1 - text[0] @ text[1]) / 0.07)
    assert bad > 0.6
    torch.testing.assert_close(found.image_score, torch.stack([bad, 1 - bad]))
    torch.testing.assert_close(found.anomaly_map, torch.stack([bad, 1 - bad])[:, None, None].expand(2, 32, 32))


# --- few shots ---


def test_the_few_shot_part_of_a_reference_image_is_zero():
    few, zero = fitted(KNOWN).score(KNOWN), fitted().score(KNOWN)
    torch.testing.assert_close(few.anomaly_map, zero.anomaly_map, atol=2e-6, rtol=0)
    torch.testing.assert_close(few.image_score, zero.image_score / 2, atol=2e-6, rtol=0)


def test_few_shot_distances_are_half_the_cosine_distance_to_the_nearest_reference():
    detector = fitted(KNOWN)
    one = {layer: NEW[layer][0] for layer in detector.needs.layers}

    def distance(layer):
        rows, references = (F.normalize(value.flatten(-2).transpose(-1, -2).reshape(-1, 12), dim=1) for value in (one[layer], KNOWN[layer]))
        return torch.stack([min((1 - row @ other) / 2 for other in references) for row in rows]).view(one[layer].shape[1:])

    few = (distance("patches") + spread(distance("window2"), 2) + spread(distance("window3"), 3)) / 3
    score, anomaly_map = detector._score(one)
    zero_score, zero_map = fitted()._score(one)
    torch.testing.assert_close(anomaly_map, zero_map + few, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(score, (zero_score + few.max()) / 2, atol=1e-6, rtol=1e-5)


def test_more_references_never_raise_a_few_shot_map():
    less, more = (fitted({layer: value[:count] for layer, value in KNOWN.items()}).score(NEW).anomaly_map for count in (1, 4))
    assert (more <= less + 1e-6).all() and (more < less - 1e-4).any()


def test_a_planted_defect_is_where_the_few_shot_map_is_highest():
    found = fitted(KNOWN).score(plant := features_of(plant_defect(normal_pixels(3, seed=2))))
    for anomaly_map in found.anomaly_map - fitted().score(plant).anomaly_map:
        row, column = divmod(int(anomaly_map.argmax()), 32)
        assert 14 <= row < 32 and 0 <= column < 17  # a window reaches two patches further


def test_what_cannot_be_is_refused():
    with pytest.raises(Refusal, match="its encoder reads none: pair it with an encoder of kind clip"):
        fitted(session=run(text=None))
    with pytest.raises(NotFitted, match="WinCLIP"):
        WinCLIP().score(NEW)
    with pytest.raises(ValueError, match=r"scales must be .* got \(\)"):
        WinCLIP(scales=())
