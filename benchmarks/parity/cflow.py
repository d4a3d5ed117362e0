"""CFLOW beside anomalib's: the same weights and permutations in both, random feature maps of a ResNet's channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.parity.fastflow import copy_coupling
from benchmarks.parity.row import Parity
from stages.detectors.flow.cflow import CFlow, encode_positions, log_likelihood

SIZE = 64  # pixels
LAYERS = {"layer2": (128, 8, 8), "layer3": (256, 4, 4), "layer4": (512, 2, 2)}  # of ResNet-18
TOLERANCE = 1e-4


def compare() -> Iterator[Parity]:
    from anomalib.models.image.cflow.anomaly_map import AnomalyMapGenerator
    from anomalib.models.image.cflow.torch_model import CflowModel
    from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d

    reference = CflowModel(backbone="resnet18", layers=list(LAYERS), pre_trained=False)
    ours = CFlow(permutation="hard")
    ours._build(torch.tensor([shape[0] for shape in LAYERS.values()]), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    for decoder, flow in zip(reference.decoders, ours.flows, strict=True):
        for block, layer in zip(decoder.module_list, flow.layers, strict=True):
            copy_coupling(block, layer)
    features = {layer: torch.randn(2, *shape, generator=generator) for layer, shape in LAYERS.items()}
    features["pixels"] = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    encoding, likelihood, losses, theirs = 0.0, 0.0, [], []
    with torch.no_grad():
        for (layer, (width, *grid)), decoder, flow in zip(LAYERS.items(), reference.decoders, ours.flows, strict=True):
            position = positional_encoding_2d(128, *grid).flatten(1).T.repeat(2, 1)
            our_position = encode_positions(128, *grid).repeat(2, 1)
            encoding = max(encoding, (our_position - position).abs().max().item())
            fibres = features[layer].permute(0, 2, 3, 1).flatten(0, 2)
            theirs.append(get_logp(width, *decoder(fibres, [position])) / width)
            our_logs = log_likelihood(flow, fibres, our_position) / width
            likelihood = max(likelihood, (our_logs - theirs[-1]).abs().max().item())
            losses.append((our_logs.sigmoid().log() - torch.nn.functional.logsigmoid(theirs[-1])).mean().abs().item())
        maps = AnomalyMapGenerator(list(LAYERS))(
            distribution=theirs, height=[s[1] for s in LAYERS.values()], width=[s[2] for s in LAYERS.values()], image_size=(SIZE, SIZE)
        )
        logs = ours._log_likelihoods(features)
        ours.layer_max = torch.stack([layer.max() for layer in logs])  # theirs are of the batch, ours of training: give ours the batch's
        ours.sum_max = ours._likelihood(logs, (SIZE, SIZE)).max()[None]
        difference = (ours.score(features).anomaly_map - maps).abs().max().item()
    name, on = "anomalib 2.7.0 CflowModel", "random maps of ResNet-18's shapes at 64 px, 8 blocks"
    yield Parity("cflow", name, "encoding of 8 x 8, 4 x 4 and 2 x 2 positions", encoding, TOLERANCE)
    yield Parity("cflow", name, f"log p / C, {on}", likelihood, TOLERANCE)
    yield Parity("cflow", name, f"loss, {on}", max(losses), TOLERANCE)
    note = "anomalib takes its maxima over the batch, so its scores depend on it; here ours were given the batch's, and in use they are training's"
    yield Parity("cflow", name, f"anomaly map with the same maxima, {on}", difference, TOLERANCE, note)
