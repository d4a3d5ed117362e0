"""DRAEM beside anomalib's DraemModel and DraemLoss (Apache-2.0), with the same weights on the same random input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.parity.row import Parity
from stages.detectors.reconstruction.draem import DRAEM, focal_loss
from stages.detectors.reconstruction.maths.similarity import structural_similarity

REFERENCE = "anomalib 2.7.0"


def compare() -> Iterator[Parity]:
    """Both networks at the paper's widths on 64 x 64 pixels; then the terms of the loss on the same redrawing, marking and mask."""
    from anomalib.models.image.draem.loss import DraemLoss
    from anomalib.models.image.draem.torch_model import DraemModel

    generator = torch.Generator().manual_seed(0)
    ours = DRAEM()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = DraemModel().eval()
    copy_weights(theirs, ours)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    images = pixels / 255
    with torch.no_grad():
        redrawn, _ = ours._forward(images)
        ours.steps_trained = torch.tensor([1])
        ours_map, theirs_map = ours.score({"pixels": pixels}).anomaly_map, theirs(images).anomaly_map
        their_redrawn = theirs.reconstructive_subnetwork(images)
    yield row("DraemModel", "redrawn image, 2 x 3 x 64 x 64", redrawn, their_redrawn)
    swapped = "anomalib gives the marking network the image first, the paper its redrawing: channels of its first weights are swapped"
    yield row("DraemModel", "anomaly map, 2 x 64 x 64", ours_map, theirs_map, swapped)
    normal, drawn = (torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2))
    logits, mask = torch.randn(2, 2, 64, 64, generator=generator), torch.rand(2, 64, 64, generator=generator) > 0.8
    loss = DraemLoss()
    dissimilarity = 1 - structural_similarity(drawn, normal).mean()
    yield row("DraemLoss", "structural term (anomalib's 2 (1 - SSIM) / 2)", dissimilarity, 2 * loss.ssim_loss(drawn, normal))
    note = "anomalib's alpha=1 gives normal pixels the weight 1 - alpha = 0 and averages over both classes; DRAEM has no class weights"
    yield row("DraemLoss", "focal term, all pixels", focal_loss(logits, mask), loss.focal_loss(logits, mask.long()), note)
    defective = focal_loss(logits[:, :, None].movedim(1, -1)[mask[:, None]].T[None, :, None], torch.ones(1, 1, int(mask.sum())) > 0)
    share = defective * mask.float().mean() / 2
    yield row("DraemLoss", "focal term of defective pixels / 2", share, loss.focal_loss(logits, mask.long()))


def row(reference: str, compared: str, ours: Tensor, theirs: Tensor, note: str = "") -> Parity:
    return Parity("draem", f"{REFERENCE} {reference}", compared, (ours - theirs).abs().max().item(), 1e-4, note)


def copy_weights(theirs: nn.Module, ours: DRAEM) -> None:
    """By the order in which layers are applied, which both networks share."""
    redrawing, marking = ours.networks["redrawing"], ours.networks["marking"]
    encoder, decoder = theirs.reconstructive_subnetwork.encoder, theirs.reconstructive_subnetwork.decoder
    for level, block in enumerate(redrawing.encoder.blocks, 1):
        copy_layers(getattr(encoder, f"block{level}"), block)
    for step, (rise, block) in enumerate(zip(redrawing.rises, redrawing.blocks, strict=True), 1):
        copy_layers(getattr(decoder, f"up{step}"), rise)
        copy_layers(getattr(decoder, f"db{step}"), block)
    redrawing.last.load_state_dict(decoder.fin_out[0].state_dict())
    encoder, decoder = theirs.discriminative_subnetwork.encoder_segment, theirs.discriminative_subnetwork.decoder_segment
    for level, block in enumerate(marking.encoder.blocks, 1):
        copy_layers(getattr(encoder, f"block{level}"), block)
    for step, rise, block in zip("b1234", marking.rises, marking.blocks, strict=True):
        copy_layers(getattr(decoder, f"up_{step}" if step == "b" else f"up{step}"), rise)
        copy_layers(getattr(decoder, f"db_{step}" if step == "b" else f"db{step}"), block)
    marking.last.load_state_dict(decoder.fin_out[0].state_dict())
    first = marking.encoder.blocks[0][0][0]
    first.weight.data = first.weight.data.roll(3, dims=1)  # anomalib's image, redrawing to our redrawing, image


def copy_layers(source: nn.Module, target: nn.Module) -> None:
    def learnt(module: nn.Module) -> list[nn.Module]:
        return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]

    for theirs, ours in zip(learnt(source), learnt(target), strict=True):
        ours.load_state_dict(theirs.state_dict())
