"""DSR against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.reconstruction.dsr import BOTH, DSR, focal_loss, other_codes, padded_images
from stages.encoders import vq
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, noise_pixels, normal_pixels

SMALL = {"vq_weights": "random", "channels": 4, "codes": 40, "width": 2, "steps": 4, "batch_size": 4, "learning_rate": 5e-3}
TEXTURES = {"textures": ArrayBatches({"pixels": noise_pixels(6)})}


def make(**options) -> DSR:
    return DSR(**{**SMALL, "steps": 2, "channels": 8, "width": 4, **options})


def session(seed: int = 0, **more) -> Run:
    return Run(seed=seed, quiet=True, **{"aux": TEXTURES, **more})


def images(count: int = 4, seed: int = 0) -> ArrayBatches:
    return ArrayBatches({"pixels": normal_pixels(count, seed)})


@pytest.fixture(scope="module")
def fitted() -> DSR:
    return make().fit(images(), None, session())


def test_normal_codes_are_fixed_points(fitted):
    """The identity behind the method: where the restrictions change nothing and the decoder is the general one, both drawings are equal."""
    detector = make()
    detector.load_state_dict(fitted.state_dict())
    detector.restoring["low"], detector.restoring["high"], detector.restoring["decoder"] = nn.Identity(), nn.Identity(), detector.vq.decoder
    drawn, encoded = detector.vq(padded_images(normal_pixels(2)))
    own, _, _ = detector._redrawn(encoded.low, encoded.high)
    torch.testing.assert_close(own, drawn, rtol=1e-4, atol=1e-4)


def test_drawn_codes_have_ranks_from_a_twentieth_of_the_codebook_to_the_share_of_their_image():
    """Against a plain ranking; both ends are met, and outside the mask nothing changes."""
    book, generator = vq.Quantiser(60, 3), torch.Generator().manual_seed(0)
    embedded = torch.randn(2, 3, 20, 20, generator=generator)
    inside = torch.zeros(2, 20, 20, dtype=torch.bool)
    inside[:, 4:] = True
    changed = other_codes(embedded, book.nearest(embedded), inside, torch.tensor([0.2, 1.0]), book, generator)
    assert torch.equal(changed[:, :, :4], book.nearest(embedded)[:, :, :4])
    for image, (first, last) in enumerate([(3, 12), (3, 58)]):  # 5 % of 60; 0.2 x 60, and no more than 60 - 2
        ranks = []
        for row, code in zip(vq.as_rows(embedded[image : image + 1, :, 4:]), vq.as_rows(changed[image : image + 1, :, 4:]), strict=True):
            ordered = (book.codes - row).norm(dim=1).argsort()
            ranks.append((book.codes[ordered] == code).all(dim=1).nonzero().item())
        assert (min(ranks), max(ranks)) == (first, last)


def test_the_focal_loss_by_hand():
    """Logits (0, log 3): p = 1/4 and 3/4. A marked pixel costs (1/4)^2 log(4/3), a normal one (3/4)^2 log 4; the loss is their mean."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    expected = (math.log(4 / 3) / 16 + 9 / 16 * math.log(4)) / 2
    assert focal_loss(logits, torch.tensor([[[True, False]]])).item() == pytest.approx(expected, rel=1e-5)


def test_the_score_is_the_maximum_of_stage_2_after_a_mean_filter_and_the_map_is_stage_3(fitted):
    coarse, fine = fitted._masks(padded_images(normal_pixels(2)))
    coarse, fine = coarse[:, 1, 16:48, 16:48], fine[:, 1, 16:48, 16:48]  # 32 pixels in the middle of 64
    image_score, anomaly_map = fitted.score({"pixels": normal_pixels(2)})
    torch.testing.assert_close(anomaly_map, fine, rtol=1e-4, atol=1e-5)
    kernel = torch.full((1, 1, 21, 21), 1 / 441)
    torch.testing.assert_close(image_score, F.conv2d(coarse[:, None], kernel, padding=10).amax(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_dsr_a_without_its_weights_it_is_refused_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(Refusal, match="E101 vq-dsr-quarter .*assay weights train-vq vq-dsr-quarter"):
        DSR(vq_weights="vq-dsr-quarter", channels=32, codes=512, width=2).fit(images(), None, session(backbones=tmp_path))


def test_dsr_a_the_general_autoencoder_stays_as_it_was_and_can_be_trained_on_textures_first():
    run = session()
    detector = make(vq_weights="textures").fit(images(), None, run)
    assert list(dict.fromkeys(row["training"] for row in run.history)) == ["codes", "restoring", "sharpening"]
    assert not any(parameter.requires_grad for parameter in detector.vq.parameters())
    before = {key: value.clone() for key, value in detector.vq.state_dict().items()}
    detector._restoring_loss(padded_images(normal_pixels(4)), torch.Generator().manual_seed(0))
    detector._sharpening_loss(TEXTURES["textures"], padded_images(normal_pixels(4)), torch.Generator().manual_seed(0))
    assert all(torch.equal(value, detector.vq.state_dict()[key]) for key, value in before.items()), "codebooks follow in stage 1 alone"


def test_dsr_b_the_marking_network_gives_no_gradient_to_what_it_looks_at(fitted):
    seen = []
    hook = fitted.restoring["marker"].register_forward_pre_hook(lambda _module, drawings: seen.extend(drawings))
    fitted.restoring.requires_grad_(True)
    try:
        loss = fitted._restoring_loss(padded_images(normal_pixels(2)), torch.Generator().manual_seed(0))
        slopes = torch.autograd.grad(loss, [fitted.restoring["decoder"].narrow.bias, fitted.restoring["low"].last.bias])
    finally:
        hook.remove()
        fitted.restoring.requires_grad_(False)
    assert len(seen) == 2 and not any(drawing.requires_grad for drawing in seen)
    assert all(slope.abs().sum() > 0 for slope in slopes), "the image's error reaches decoder and restriction through the codes"


def test_dsr_b_the_third_stage_changes_nothing_but_its_own_network():
    fitted = make(steps=1).fit(images(), None, session())
    assert not any(parameter.requires_grad for parameter in fitted.restoring.parameters())
    loss = fitted._sharpening_loss(TEXTURES["textures"], padded_images(normal_pixels(2)), torch.Generator().manual_seed(0))
    loss.backward()
    assert fitted.sharpening.last.weight.grad.abs().sum() > 0
    fitted.sharpening.zero_grad(set_to_none=True)


def test_dsr_c_the_mask_to_be_found_is_as_coarse_as_the_level_of_the_defect(fitted):
    """A mask of one pixel: 8 x 8 where low codes were changed, 4 x 4 where only high ones were; each level as often as the paper has it."""
    count = 400
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    masks[:, 21, 30] = True
    pictures = padded_images(noise_pixels(1)).expand(count, -1, -1, -1)
    low, high, normal_low, normal_high, marked = fitted._with_defects(pictures, masks, torch.Generator().manual_seed(1))
    low_changed, high_changed = ((a - b).abs().amax(dim=1) > 1e-4 for a, b in ((low, normal_low), (high, normal_high)))
    in_low, in_high = low_changed.flatten(1).any(dim=1), high_changed.flatten(1).any(dim=1)
    assert torch.equal(marked.flatten(1).sum(dim=1), torch.where(in_low, 64, 16))
    assert marked[in_low][:, 16:24, 24:32].all() and marked[~in_low][:, 20:24, 28:32].all()
    assert low_changed[in_low][:, 2, 3].all() and low_changed.sum() == in_low.sum()
    only_high = high_changed[~in_low]
    assert only_high[:, 5, 7].all() and only_high.sum() == len(only_high)
    both, low_alone = (in_low & in_high).float().mean(), (in_low & ~in_high).float().mean()
    assert abs(both - 0.5) < 0.08 and abs(low_alone - 0.25) < 0.07 and abs((~in_low).float().mean() - 0.25) < 0.07
    assert BOTH == 0


def test_dsr_d_images_are_levels_over_255_without_another_normalisation():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 96)
    assert padded_images(pixels)[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert padded_images(pixels).shape == (1, 3, 64, 96) and padded_images(normal_pixels(1)).shape == (1, 3, 64, 64)


def test_the_third_stage_has_half_the_steps_and_the_second_a_tenth_of_the_rate_at_the_end():
    run = session()
    make(steps=10, epochs=100).fit(images(), None, run)
    rates = {name: [row["lr"] for row in run.history if row.get("training") == name] for name in ("restoring", "sharpening")}
    assert rates["restoring"] == [5e-3] * 8 + [pytest.approx(5e-4)] * 2 and rates["sharpening"] == [5e-3] * 5


def test_without_textures_it_is_refused_by_name():
    with pytest.raises(Refusal, match="give it auxiliary images named 'textures'"):
        make().fit(images(), None, session(aux={}))


def test_a_run_that_is_killed_in_its_third_stage_ends_as_one_that_was_not(tmp_path, monkeypatch):
    options = {"steps": 6, "vq_weights": "textures"}
    whole = make(**options).fit(images(), None, session())
    detector, taken = make(**options), []
    loss = detector._sharpening_loss

    def killed(*given):
        taken.append(0)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(detector, "_sharpening_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(images(), None, session(resume=tmp_path, checkpoint_s=0))
    resumed = make(**options).fit(images(), None, session(resume=tmp_path, checkpoint_s=0))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_both_stages_learn():
    """On the same defects as before the training: the restored features, the drawing and the mask."""
    run, batches = session(), images(8)
    make(steps=24).fit(batches, images(4, seed=2), run)
    for stage in ("restoring", "sharpening"):
        losses = [row["val_loss"] for row in run.history if row.get("training") == stage]
        assert losses[-1] < 0.8 * losses[0]
