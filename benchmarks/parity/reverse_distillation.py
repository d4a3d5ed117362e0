"""Reverse Distillation beside anomalib's: the same weights in both, the same random features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.parity.row import Parity
from stages.detectors.distillation.maths.reverse import Pyramid
from stages.detectors.distillation.reverse_distillation import ReverseDistillation

REFERENCE = "anomalib 2.7.0, ReverseDistillationModel"
BORDER = "without the outer 17 pixels: there the authors' blur (SciPy's) mirrors the border pixel itself, anomalib's does not"
WIDE = "the embedding is built with the authors' width of 128; anomalib itself takes half of it for WideResNet-50-2"


def compare() -> Iterator[Parity]:
    yield from compared("resnet18", (64, 128, 256), None, 64, "")
    yield from compared("resnet50", (256, 512, 1024), 1.0, 64, "")
    yield from compared("wide_resnet50_2", (256, 512, 1024), None, 128, WIDE)


@torch.no_grad()
def compared(backbone: str, channels: tuple[int, ...], width: float | None, group: int, note: str) -> Iterator[Parity]:
    from anomalib.models.components.backbone import get_decoder
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode, AnomalyMapGenerator
    from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

    torch.manual_seed(0)
    bottleneck, decoder = get_bottleneck_layer(backbone, width_per_group=group), get_decoder(backbone)
    for module in [*bottleneck.modules(), *decoder.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            shake(module)
    ours = ReverseDistillation(width=width)
    pyramid = Pyramid(channels, (0, 1, 1))
    ours.pyramid, ours.student = pyramid.to_tensor(), ours._new_student(pyramid, seed=1).eval()
    ours.student.load_state_dict(named_as_ours(bottleneck, decoder))
    features = [torch.randn(2, count, 32 // 2**place, 32 // 2**place).relu() for place, count in enumerate(channels)]
    ours_in = {f"layer{place + 1}": value for place, value in enumerate(features)}
    what = f"{backbone}, random features of 128 px"

    bottleneck.train(), decoder.train(), ours.student.train()
    expected = ReverseDistillationLoss()(features, decoder(bottleneck(features))).item()
    yield Parity("reverse-distillation", REFERENCE, f"loss, {what}", abs(ours._losses(ours_in).mean().item() - expected), 1e-4, note)

    bottleneck.eval(), decoder.eval(), ours.student.eval()
    maps = AnomalyMapGenerator((128, 128), mode=AnomalyMapGenerationMode.ADD)(features, decoder(bottleneck(features)))[:, 0]
    found = ours.score({**ours_in, "pixels": torch.zeros(2, 3, 128, 128, dtype=torch.uint8)}).anomaly_map
    difference = (found - maps)[:, 17:-17, 17:-17].abs().max().item()
    yield Parity("reverse-distillation", REFERENCE, f"anomaly map, {what}", difference, 1e-4, "; ".join(filter(None, [note, BORDER])))


def shake(normalisation: nn.BatchNorm2d) -> None:
    """Statistics and scales that are not all alike, so that a permutation of them would be seen."""
    normalisation.running_mean.normal_(std=0.1)
    normalisation.running_var.uniform_(0.5, 1.5)
    normalisation.weight.uniform_(0.5, 1.5)
    normalisation.bias.normal_(std=0.1)


def named_as_ours(bottleneck: nn.Module, decoder: nn.Module) -> dict[str, Tensor]:
    paths = {"conv1": "0.0", "bn1": "0.1", "conv2": "0.3", "bn2": "0.4", "conv3": "1.0", "bn3": "1.1"}
    state: dict[str, Tensor] = {}
    for theirs, mine in paths.items():
        state |= {f"embedding.paths.{mine}.{key}": value for key, value in getattr(bottleneck, theirs).state_dict().items()}
    for place, block in enumerate(bottleneck.bn_layer):
        state |= block_as_ours(f"embedding.blocks.{place}", block, block.downsample)
    for place, stage in enumerate((decoder.layer1, decoder.layer2, decoder.layer3)):
        for number, block in enumerate(stage):
            state |= block_as_ours(f"decoder.stages.{place}.{number}", block, block.upsample)
    return state


def block_as_ours(prefix: str, block: nn.Module, skip: nn.Module | None) -> dict[str, Tensor]:
    """conv1, bn1, relu, conv2, bn2, relu, conv3, bn3 in a row; the skip is conv and bn in both."""
    state = {} if skip is None else {f"{prefix}.skip.{key}": value for key, value in skip.state_dict().items()}
    for number in range(1, 4 if hasattr(block, "conv3") else 3):
        for offset, kind in enumerate(("conv", "bn")):
            module = getattr(block, f"{kind}{number}")
            state |= {f"{prefix}.main.{3 * (number - 1) + offset}.{key}": value for key, value in module.state_dict().items()}
    return state
