"""DSR against anomalib's: the same random weights, tensor by tensor in the order of both networks' layers, on random images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.parity.row import Parity
from stages.detectors.reconstruction.dsr import DSR, focal_loss, other_codes
from stages.encoders.vq import Quantiser

REFERENCE = "anomalib 2.7.0, DsrModel"
FOCAL = (
    "theirs gives the error of normal pixels the weight 1 - alpha = 0, and their callers take the softmax before, so that it is taken twice"
)


def compare() -> Iterator[Parity]:
    from anomalib.models.image.dsr.loss import DsrThirdStageLoss
    from anomalib.models.image.dsr.torch_model import DsrModel

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    theirs = DsrModel(num_embeddings=100).eval()
    ours = DSR(vq_weights="random", codes=100)
    pairs = (
        (theirs.discrete_latent_model, ours.vq),
        (theirs.subspace_restriction_module_lo, ours.restoring["low"]),
        (theirs.subspace_restriction_module_hi, ours.restoring["high"]),
        (theirs.image_reconstruction_network, ours.restoring["decoder"]),
        (theirs.anomaly_detection_module, ours.restoring["marker"]),
        (theirs.upsampling_module, ours.sharpening),
    )
    pixels = torch.randint(256, (2, 3, 96, 96), generator=generator, dtype=torch.uint8)
    ours.vq.start(pixels / 255, generator)  # codebooks that tell positions apart
    for their_part, our_part in pairs:
        _copy(our_part, their_part)
    ours.steps_trained = torch.tensor([1, 1])
    with torch.no_grad():
        expected, found = theirs(pixels / 255), ours.score({"pixels": pixels})
    yield _row("map (stage 3), 96 px, random weights", found.anomaly_map, expected.anomaly_map)
    yield _row("image score (stage 2)", found.image_score, expected.pred_score)

    latent, encoded = theirs.discrete_latent_model, ours.vq.encode(pixels / 255)
    mask = torch.zeros(2, 1, 96, 96)
    mask[:, :, 40:90, 20:70] = 1
    inside, shares = torch.nn.functional.max_pool2d(mask, 8)[:, 0] > 0, torch.full((2,), 0.06)  # ranks 1 to 1 of 20 codes: no chance in it
    book = Quantiser(20, 128)
    book.codes.copy_(ours.vq.codes_low.codes[:20])
    their_codes = latent.generate_fake_anomalies_joined(encoded.embedded_low, encoded.low, book.codes, mask, shares)
    our_codes = other_codes(encoded.embedded_low, encoded.low, inside, shares, book, generator)
    yield _row("codes of a simulated defect where only the second nearest may be drawn", our_codes, their_codes)

    logits, loss = torch.randn(2, 2, 32, 32, generator=generator), DsrThirdStageLoss()
    everywhere = torch.ones(2, 1, 32, 32)
    ours_marked = focal_loss(logits, everywhere[:, 0]) / 2  # theirs is a mean over classes too
    yield _row("focal loss, same logits, all pixels marked, over the number of classes", ours_marked, loss(logits, everywhere))
    half = torch.rand(2, 1, 32, 32, generator=generator) > 0.5
    difference = (focal_loss(logits, half[:, 0]) / 2 - loss(logits, half)).abs().item()
    yield Parity("dsr", REFERENCE, "focal loss, same logits, half of the pixels marked", difference, 1e-4, FOCAL)


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Parameters and buffers in order; every shape must agree."""
    state = theirs.state_dict()
    for (key, target), source in zip(state.items(), ours.state_dict().values(), strict=True):
        if target.shape != source.shape:
            raise ValueError(f"{key}: {tuple(target.shape)} and {tuple(source.shape)}")
        state[key] = source
    theirs.load_state_dict(state)


def _row(compared: str, ours: torch.Tensor, theirs: torch.Tensor) -> Parity:
    return Parity("dsr", REFERENCE, compared, (ours - theirs).abs().max().item(), 1e-4)
