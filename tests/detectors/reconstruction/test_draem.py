"""DRAEM against its paper. The letters are those of the list of what implementations get wrong, in the order given there."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.reconstruction.draem import DRAEM, fifth_at_the_end, focal_loss
from stages.detectors.reconstruction.maths import smudges
from stages.detectors.reconstruction.maths.similarity import structural_similarity
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, noise_pixels, normal_pixels

SMALL = {  # for the contract test
    "width": 2,
    "marking_width": 8,
    "levels": 2,
    "steps": 80,
    "batch_size": 4,
    "learning_rate": 0.01,
    "opacity": 0.2,
    "clean": 0.2,
    "turned": 0.0,
    "score_window": 5,
}
TINY = SMALL | {"marking_width": 2, "steps": 3}
TEXTURES = ArrayBatches({"pixels": noise_pixels(6, seed=0)})


def session(seed: int = 0, **options) -> Run:
    return Run(seed=seed, quiet=True, aux={"textures": TEXTURES}, **options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Called(nn.Module):
    """In place of a network: answers with `answer(input)` and remembers its input."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.seen, self.weight = answer, [], nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.seen.append(images)
        return self.answer(images)


def with_answers(redraw, mark, **options) -> DRAEM:
    detector = DRAEM(**TINY | options)
    detector.networks = nn.ModuleDict({"redrawing": Called(redraw), "marking": Called(mark)})
    detector.steps_trained = torch.tensor([1])
    return detector.eval()


def marks(images):
    """Logits whose anomalous channel is large where the redrawn image is bright."""
    return torch.cat([torch.zeros_like(images[:, :1]), 8 * images[:, :1] - 4], dim=1)


def test_draem_a_networks_see_values_in_0_to_1_without_another_normalisation():
    detector, pixels = with_answers(lambda images: images, marks), normal_pixels(2)
    detector.score({"pixels": pixels})
    torch.testing.assert_close(detector.networks["redrawing"].seen[0], pixels / 255)


def test_draem_b_the_redrawing_comes_first_and_the_image_second():
    detector, pixels = with_answers(lambda images: images * 0 - 7, marks), normal_pixels(2)
    detector.score({"pixels": pixels})
    (joined,) = detector.networks["marking"].seen
    assert (joined[:, :3] == -7).all()
    torch.testing.assert_close(joined[:, 3:], pixels / 255)


def test_draem_c_beta_is_the_opacity_of_the_original_under_the_defect(monkeypatch):
    """A white image under a black texture shows beta itself: 0..0.8 by default, never more, and 0 where no opacity is asked for."""
    monkeypatch.setattr(smudges, "changed_texture", lambda texture, generator: texture)
    black = ArrayBatches({"pixels": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)})
    for opacity in (0.0, 0.8):
        detector = DRAEM(**TINY | {"opacity": opacity, "clean": 0.0})
        _, defective, masks = detector._simulated(torch.ones(200, 3, 32, 32), black, generator())
        beta = torch.stack([image[:, mask].mean() for image, mask in zip(defective, masks, strict=True) if mask.any()])
        assert beta.max() <= opacity and beta.mean().item() == pytest.approx(opacity / 2, abs=0.05)


def test_draem_d_weights_start_as_the_papers():
    """Convolutions from N(0, 0.02), normalisations from N(1, 0.02), in both networks."""
    network = DRAEM(width=16, marking_width=16).networks
    for name in ("redrawing", "marking"):
        weights = torch.cat([part.weight.flatten() for part in network[name].modules() if isinstance(part, nn.Conv2d)])
        norms = torch.cat([part.weight for part in network[name].modules() if isinstance(part, nn.BatchNorm2d)])
        assert weights.std().item() == pytest.approx(0.02, rel=0.02) and abs(weights.mean()) < 2e-4
        assert norms.mean().item() == pytest.approx(1, abs=0.005) and norms.std().item() == pytest.approx(0.02, rel=0.2)


def test_draem_e_the_map_is_the_probability_itself_and_only_the_score_is_smoothed():
    """By hand: a single marked pixel among unmarked ones is a 25th of a mean filter of 5 pixels, in a corner too."""
    detector = with_answers(lambda images: images, marks)
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    pixels[0, :, 10, 12], pixels[1, :, 0, 0] = 255, 255
    image_score, anomaly_map = detector.score({"pixels": pixels})
    low, high = torch.tensor(-4.0).sigmoid().item(), torch.tensor(4.0).sigmoid().item()
    assert anomaly_map[0, 10, 12].item() == pytest.approx(high, rel=1e-4) and anomaly_map[0, 10, 13].item() == pytest.approx(low, rel=1e-4)
    assert image_score[0].item() == pytest.approx((high + 24 * low) / 25, rel=1e-4)
    assert image_score[1].item() == pytest.approx((high + 24 * low) / 25, rel=1e-4)  # a window that lies wholly inside
    assert inspect.signature(DRAEM).parameters["score_window"].default == 21


def test_draem_f_no_block_is_added_to_the_papers_networks():
    """SSPCAB would be a masked, dilated convolution in the encoder: there are 3x3 convolutions without dilation and nothing else."""
    parts = [part for part in DRAEM(**TINY | {"levels": 5}).networks.modules() if not list(part.children())]
    assert {type(part) for part in parts} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}
    assert all(part.kernel_size == (3, 3) and part.dilation == (1, 1) for part in parts if isinstance(part, nn.Conv2d))


def test_the_focal_loss_by_hand_and_with_gamma_0_it_is_the_cross_entropy():
    logits, masks = torch.zeros(1, 2, 1, 2), torch.tensor([[[True, False]]])
    logits[0, 1, 0, 0] = 3.0  # p = sigmoid(3) of the true class; the other pixel has 1/2
    p = torch.tensor(3.0).sigmoid()
    expected = -((1 - p) ** 2 * p.log() + 0.25 * torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(focal_loss(logits, masks), expected)
    drawn = torch.randn(2, 2, 5, 5, generator=generator())
    torch.testing.assert_close(focal_loss(drawn, drawn[:, 0] > 0, gamma=0.0), F.cross_entropy(drawn, (drawn[:, 0] > 0).long()))


def test_the_loss_is_the_sum_of_its_three_terms_with_equal_weight():
    normal, defective = torch.rand(2, 3, 32, 32, generator=generator(1)), torch.rand(2, 3, 32, 32, generator=generator(2))
    mask = defective[:, 0] > 0.5
    detector = with_answers(lambda images: images.flip(3), marks)
    redrawn = defective.flip(3)
    logits = marks(redrawn)
    terms = (redrawn - normal).square().mean(), 1 - structural_similarity(redrawn, normal).mean(), focal_loss(logits, mask)
    torch.testing.assert_close(detector._loss_of(normal, defective, mask), sum(terms))


def test_a_perfect_redrawing_and_marking_cost_nothing():
    normal = torch.rand(2, 3, 32, 32, generator=generator())
    detector = with_answers(lambda images: normal, lambda images: 200 * torch.eye(2)[0][None, :, None, None].expand(2, 2, 32, 32))
    assert detector._loss_of(normal, normal, torch.zeros(2, 32, 32, dtype=torch.bool)).abs() < 1e-5


def test_the_redrawing_is_to_be_the_turned_image_and_is_turned_as_often_as_asked():
    detector, images = DRAEM(**TINY | {"turned": 0.3, "clean": 1.0}), torch.ones(200, 3, 16, 16)
    normal, defective, masks = detector._simulated(images, TEXTURES, generator())
    turned = (normal != images).flatten(1).any(dim=1).float().mean()  # black corners come in
    assert 0.2 < turned < 0.4 and torch.equal(normal, defective) and not masks.any()
    never = DRAEM(**TINY | {"turned": 0.0, "clean": 1.0})._simulated(images, TEXTURES, generator())[0]
    assert torch.equal(never, images)


def test_textures_of_another_size_are_fitted_to_the_image():
    large = ArrayBatches({"pixels": torch.full((2, 3, 50, 40), 255, dtype=torch.uint8)})
    _, defective, masks = DRAEM(**TINY | {"clean": 0.0})._simulated(torch.zeros(8, 3, 32, 28), large, generator())
    assert defective.shape == (8, 3, 32, 28) and masks.any()


def test_an_image_of_any_size_is_padded_to_the_levels_and_the_map_is_its_own():
    detector, pixels = with_answers(lambda images: images, marks, levels=4), normal_pixels(1)[:, :, :27, :30]
    assert detector.score({"pixels": pixels}).anomaly_map.shape == (1, 27, 30)
    assert detector.networks["redrawing"].seen[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(detector.score({"pixels": pixels}).anomaly_map, marks(pixels / 255).softmax(dim=1)[:, 1])


def test_one_image_in_the_last_batch_can_be_learnt_from():
    """At the coarsest level there are four positions at least: batch normalisation needs more than one value."""
    trained = DRAEM(**TINY | {"levels": 5, "batch_size": 4, "steps": 2}).fit(ArrayBatches({"pixels": normal_pixels(5)}), None, session())
    assert trained.steps_trained.item() == 2


def test_the_learning_rate_falls_to_a_fifth_at_80_and_again_at_90_percent():
    assert [fifth_at_the_end(step, 10) for step in (0, 7, 8, 9)] == pytest.approx([1, 1, 0.2, 0.04])


def test_the_held_out_loss_is_the_same_each_time_and_whatever_the_batches():
    detector, pixels = DRAEM(**TINY), normal_pixels(5)
    values = [detector._held_out_loss(ArrayBatches({"pixels": pixels}, batch_size=size), TEXTURES, session()) for size in (5, 2, 2)]
    assert values[1] == values[2] == pytest.approx(values[0], rel=1e-5)
    assert detector._held_out_loss(ArrayBatches({"pixels": pixels}), TEXTURES, session(seed=1)) != values[0]


def test_the_state_with_the_lowest_held_out_loss_is_kept(monkeypatch):
    values = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr(DRAEM, "_held_out_loss", lambda self, batches, textures, run: next(values))
    batches, run = ArrayBatches({"pixels": normal_pixels(4)}), session()
    detector = DRAEM(**TINY | {"steps": None, "epochs": 9, "patience": 2}).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [3.0, 1.0, 2.0, 2.0] and detector.steps_trained.item() == 2


def test_without_textures_it_is_refused():
    with pytest.raises(Refusal, match="this run has none: give it auxiliary images named 'textures'"):
        DRAEM(**TINY).fit(ArrayBatches({"pixels": normal_pixels(4)}), None, Run(seed=0, quiet=True))


def test_interrupted_and_resumed_it_ends_in_the_same_state(tmp_path, monkeypatch):
    batches, losses = ArrayBatches({"pixels": normal_pixels(6)}), DRAEM._loss
    options, calls = TINY | {"steps": 5}, []
    clean = DRAEM(**options).fit(batches, batches, session()).state_dict()

    def dies(self, *given, **named):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return losses(self, *given, **named)

    monkeypatch.setattr(DRAEM, "_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        DRAEM(**options).fit(batches, batches, session(resume=tmp_path, checkpoint_s=0.0))
    resumed = DRAEM(**options).fit(batches, batches, session(resume=tmp_path, checkpoint_s=0.0)).state_dict()
    assert len(calls) == 6 and all(torch.equal(value, resumed[key]) for key, value in clean.items())  # steps 4 and 5 only


def test_training_leaves_what_it_did_not_learn_from_alone():
    detector = DRAEM(**TINY)
    before = copy.deepcopy(TEXTURES.features["pixels"])
    detector.fit(ArrayBatches({"pixels": normal_pixels(4)}), None, session())
    assert torch.equal(before, TEXTURES.features["pixels"])


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="score_window must be odd"):
        DRAEM(score_window=20)
    with pytest.raises(ValueError, match=r"opacity must be in 0\.\.1, got 2"):
        DRAEM(opacity=2)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        DRAEM(levels=1)
