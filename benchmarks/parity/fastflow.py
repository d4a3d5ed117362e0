"""FastFlow beside anomalib's: the same weights and permutations in both, random feature maps of a ResNet's channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.parity.row import Parity
from stages.detectors.flow.fastflow import FastFlow

SIZE = 64  # pixels
LAYERS = {"layer1": (64, 16, 16), "layer2": (128, 8, 8), "layer3": (256, 4, 4)}  # of ResNet-18
TOLERANCE = 1e-4


def compare() -> Iterator[Parity]:
    from anomalib.models.image.fastflow.loss import FastflowLoss
    from anomalib.models.image.fastflow.torch_model import FastflowModel

    reference = FastflowModel(input_size=(SIZE, SIZE), backbone="resnet18", pre_trained=False)
    ours = FastFlow(batch_size=2)
    ours._build(torch.tensor(list(LAYERS.values())), seed=0)
    generator = torch.Generator().manual_seed(0)
    for norm, blocks, part in zip(reference.norms, reference.fast_flow_blocks, ours.flows, strict=True):
        _shake(part, generator)
        norm.load_state_dict(part["norm"].state_dict())
        for block, layer in zip(blocks.module_list, part["flow"].layers, strict=True):
            copy_coupling(block, layer)
    features = {layer: torch.randn(2, *shape, generator=generator) for layer, shape in LAYERS.items()}
    features["pixels"] = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    with torch.no_grad():
        normed = [norm(features[layer]) for norm, layer in zip(reference.norms, LAYERS, strict=True)]
        latents, log_dets = zip(*[flow(values) for flow, values in zip(reference.fast_flow_blocks, normed, strict=True)], strict=True)
        their_map, their_loss = reference.anomaly_map_generator(list(latents))[:, 0], FastflowLoss()(list(latents), list(log_dets))
        our_map, our_loss = ours.score(features).anomaly_map, ours._negative_log_likelihood(features).mean()
    name, on = "anomalib 2.7.0 FastflowModel", "2 x 3 random maps of ResNet-18's shapes at 64 px, 8 steps"
    yield Parity("fastflow", name, f"anomaly map, {on}", (our_map - their_map).abs().max().item(), TOLERANCE)
    yield Parity("fastflow", name, f"loss, relative, {on}", (our_loss / their_loss - 1).abs().item(), TOLERANCE)


def copy_coupling(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Into an AllInOneBlock of anomalib: weights by name, the permutation as the matrix it keeps."""
    matrix = ours.rotation if hasattr(ours, "rotation") else torch.eye(len(ours.order))[ours.order]
    with torch.no_grad():
        theirs.subnet.load_state_dict(ours.subnet.state_dict())
        theirs.global_scale.copy_(ours.gamma.view_as(theirs.global_scale))
        theirs.global_offset.copy_(ours.shift.view_as(theirs.global_offset))
        theirs.w_perm.copy_(matrix.view_as(theirs.w_perm))
        theirs.w_perm_inv.copy_(matrix.T.reshape(theirs.w_perm_inv.shape))


def _shake(module: torch.nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
