"""UniNet beside anomalib's: student, loss, feature selection and map, the same weights in both, on random features of two teachers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.parity.reverse_distillation import block_as_ours, shake
from benchmarks.parity.row import Parity
from stages.detectors.distillation.maths.reverse import Pyramid, ReverseStudent, Style, TwoBranches, summed_map, unit_distance
from stages.detectors.distillation.uninet import select_features, similarity_loss

REFERENCE = "anomalib 2.7.0, UniNetModel"
PYRAMID = Pyramid((256, 512, 1024), (0, 1, 1))
BRANCH = "our wide branch with kernel 3: anomalib replaces its 7 x 7 convolutions by 3 x 3 ones when it is built"
CHANCE = "theirs adds 1e-8 to each probability; without the head that it trains on labels, which neither paper nor we have"


def compare() -> Iterator[Parity]:
    from anomalib.models.components.backbone import get_decoder
    from anomalib.models.image.uninet.components import (
        AttentionBottleneck,
        BottleneckLayer,
        DomainRelatedFeatureSelection,
        UniNetLoss,
        weighted_decision_mechanism,
    )

    torch.manual_seed(0)
    bottleneck = BottleneckLayer(block=AttentionBottleneck, layers=3, width_per_group=128).eval()
    decoder, selection = get_decoder("wide_resnet50_2").eval(), DomainRelatedFeatureSelection()
    with torch.no_grad():
        for module in [*bottleneck.modules(), *decoder.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                shake(module)
        for number in (1, 2, 3):
            getattr(selection, f"theta{number}").normal_()
    style = Style.of(PYRAMID, "auto", None)
    ours = ReverseStudent(PYRAMID, style, 1, lambda i, o, s: TwoBranches(i, o, style.inner(o), 3, s)).eval()
    ours.load_state_dict(named_as_ours(bottleneck, decoder))

    source, target = ([torch.randn(2, c, 32 // 2**p, 32 // 2**p).relu() for p, c in enumerate(PYRAMID.channels)] for _ in range(2))
    teachers, fed = source + target, [torch.cat(pair) for pair in zip(target, source, strict=True)]
    with torch.no_grad():
        theirs, restored = decoder(bottleneck(fed)), ours(fed)
    difference = max((one - other).abs().max().item() for one, other in zip(theirs, restored, strict=True))
    yield Parity("uninet", REFERENCE, "student's features over the largest", difference / theirs[0].abs().max().item(), 1e-4, BRANCH)

    students = [layer.chunk(2)[half] for half in (0, 1) for layer in restored]
    thetas = [getattr(selection, f"theta{number}").detach() for number in (1, 2, 3)] * 2
    selected = [select_features(*each) for each in zip(students, teachers, thetas, strict=True)]
    expected = selection(students, teachers)
    difference = max((one - other).abs().max().item() for one, other in zip(expected, selected, strict=True))
    yield Parity("uninet", REFERENCE, "selected features", difference, 1e-4)

    for temperature in (2.0, 0.1):
        loss = UniNetLoss(temperature=temperature)(expected, teachers).item()
        found = sum(similarity_loss(*pair, temperature, 0.3) for pair in zip(selected, teachers, strict=True)).mean().item()
        yield Parity("uninet", REFERENCE, f"loss over itself, temperature {temperature}", abs(found / loss - 1), 1e-4, CHANCE)

    distances = [unit_distance(*pair) for pair in zip(teachers, students, strict=True)]
    cosines = [1 - torch.cosine_similarity(*pair) for pair in zip(teachers, students, strict=True)]
    _, maps = weighted_decision_mechanism(2, cosines, 0.01, 3e-5, (128, 128))
    note = "the score is not compared: theirs is the highest pixel of a map blurred by 5 x 5 pixels, the authors' the mean of the top share"
    yield Parity("uninet", REFERENCE, "anomaly map", (summed_map(distances, (128, 128)) - maps).abs().max().item(), 1e-4, note)


def named_as_ours(bottleneck: nn.Module, decoder: nn.Module) -> dict[str, Tensor]:
    paths = {"conv1": "0.0", "bn1": "0.1", "conv2": "0.3", "bn2": "0.4", "conv3": "1.0", "bn3": "1.1"}
    state: dict[str, Tensor] = {}
    for theirs, mine in paths.items():
        state |= {f"embedding.paths.{mine}.{key}": value for key, value in getattr(bottleneck, theirs).state_dict().items()}
    branches = {
        "conv3x3": "0.0",
        "bn2": "0.1",
        "conv3x3_": "0.3",
        "bn5": "0.4",
        "conv7x7": "1.0",
        "bn4": "1.1",
        "conv7x7_": "1.3",
        "bn6": "1.4",
    }
    parts = {theirs: f"branches.{mine}" for theirs, mine in branches.items()} | {"conv3": "fuse.0", "bn3": "fuse.1", "downsample": "skip"}
    for place, block in enumerate(bottleneck.bn_layer[0]):
        for theirs, mine in parts.items():
            module = getattr(block, theirs)
            for key, value in module.state_dict().items() if module is not None else ():
                if key != "bias" or isinstance(module, nn.BatchNorm2d):
                    state[f"embedding.blocks.{place}.{mine}.{key}"] = value
                elif value.any():
                    raise ValueError(f"{theirs} has a bias, which ours has no place for")
    for place, stage in enumerate((decoder.layer1, decoder.layer2, decoder.layer3)):
        for number, block in enumerate(stage):
            state |= block_as_ours(f"decoder.stages.{place}.{number}", block, block.upsample)
    return state
