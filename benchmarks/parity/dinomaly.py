"""Dinomaly against anomalib's: the same transformer, bottleneck and decoder; ViT-S with registers at random weights, small images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.parity.row import Parity
from stages.detectors.distillation import dinomaly
from stages.detectors.distillation.dinomaly import Dinomaly
from stages.detectors.distillation.maths.stable_adamw import StableAdamW
from stages.encoders.vit import ViT, interpolate_positions
from stages.types import Batch, Features

REFERENCE = "anomalib 2.7.0, DinomalyModel"
BACKBONE = "vit_small_patch14_reg4_dinov2"
GROUPS = {"group1": [2, 3, 4, 5], "group2": [6, 7, 8, 9]}
SIZE = 56
BIASES = (".mlp.0.bias", ".mlp.2.bias", "bottleneck.1.bias", "bottleneck.4.bias")  # of ours alone
PLACES = {
    "bottleneck.0.fc1.": "bottleneck.1.",
    "bottleneck.0.fc2.": "bottleneck.4.",
    "decoder.": "blocks.",
    ".norm1.": ".attention_norm.",
    ".norm2.": ".mlp_norm.",
    ".attn.qkv.": ".qkv.",
    ".attn.proj.": ".project.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.2.",
}


def compare() -> Iterator[Parity]:
    torch.manual_seed(0)
    theirs, ours, network = _pair()
    levels = torch.randint(256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    normalised = (levels / 255 - network.mean) / network.std
    features = {**network(levels), "pixels": levels}
    with torch.no_grad():
        targets, rebuilt = theirs.get_encoder_decoder_outputs(normalised)
        expected, scored = theirs(normalised), ours.score(features)
    row = partial(Parity, "dinomaly", REFERENCE)
    known = "position_offset 0 in ours: the reference has none, the paper's code 0.1"
    yield row("targets, both groups", _furthest(targets, [features[group] for group in GROUPS]), 1e-4, known)
    yield row("reconstructions, both groups", _furthest(rebuilt, ours._rebuild(features)[1]), 1e-4)
    yield row("image score", _furthest([expected.pred_score], [scored.image_score]), 1e-4)
    yield row(
        "map", _furthest([expected.anomaly_map[:, 0]], [scored.anomaly_map]), 1e-4, "theirs is handed out before the blur, ours after it"
    )
    with mock.patch.object(dinomaly, "blur", lambda maps: maps):
        ours.map_size = SIZE
        unblurred = ours.score(features).anomaly_map
    yield row("map, neither blurred", _furthest([expected.anomaly_map[:, 0]], [unblurred]), 1e-4)
    yield from _training(theirs, ours, normalised, features)
    yield _optimiser()
    yield _schedule()


def _pair() -> tuple[nn.Module, Dinomaly, ViT]:
    from anomalib.models.image.dinomaly import torch_model

    with mock.patch.object(torch_model, "TimmFeatureExtractor", _offline(torch_model.TimmFeatureExtractor)):
        theirs = torch_model.DinomalyModel(BACKBONE, bottleneck_dropout=0.0).eval()
    encoder = theirs.encoder.feature_extractor.state_dict()
    for name, value in encoder.items():
        if ".ls" in name:
            value.fill_(0.3)  # at 1e-5, where they begin, every block gives what it is given
    network = ViT(backbone=BACKBONE, layers=Dinomaly().needs.layers, weights="random", image_size=SIZE, groups=GROUPS, position_offset=0.0)
    kept = {key: value for key, value in encoder.items() if key in network.network.state_dict()}
    positions = interpolate_positions(kept["pos_embed"], native=37, grid=SIZE // 14, offset=0.0)
    network.network.load_state_dict({**kept, "pos_embed": positions})
    ours = Dinomaly(dropout=0.0)
    for parameter in [*theirs.bottleneck.parameters(), *theirs.decoder.parameters()]:
        parameter.data += 0.02 * torch.randn_like(parameter)  # far from the start, where all maps are alike
    state = {f"network.{_renamed(key)}": value for key, value in theirs.state_dict().items() if key.startswith(("bottleneck", "decoder"))}
    fresh = ours._new_network(384, seed=0).state_dict()
    biases = {f"network.{key}": torch.zeros_like(value) for key, value in fresh.items() if key.endswith(BIASES)}
    ours.load_state_dict({**state, **biases, "network.steps": torch.tensor(700), "steps_trained": torch.tensor([1])})
    return theirs, ours.eval(), network


def _training(theirs: nn.Module, ours: Dinomaly, normalised: Tensor, features: Features) -> Iterator[Parity]:
    """Loss and gradient at step 700, where 63 % of the positions are thinned out; without dropout."""
    expected = theirs.train()(normalised, global_step=700)
    expected.backward()
    got = ours._loss(Batch(features, torch.zeros(3), None, [], []), torch.Generator())
    got.backward()
    own = dict(ours.network.named_parameters())
    pairs = [(parameter.grad, own[_renamed(name)].grad) for name, parameter in theirs.named_parameters() if _renamed(name) in own]
    largest = max(one.abs().max().item() for one, _ in pairs)
    yield Parity("dinomaly", REFERENCE, "loss at step 700", abs(expected.item() - got.item()), 1e-4)
    difference = _furthest([one / largest for one, _ in pairs], [other / largest for _, other in pairs])
    yield Parity("dinomaly", REFERENCE, f"gradient of {len(pairs)} tensors, relative to the largest", difference, 1e-4)


def _optimiser() -> Parity:
    from anomalib.models.image.dinomaly.components import StableAdamW as Theirs

    start = torch.randn(20, 10)
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 2e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-8}
    optimisers = StableAdamW([one], **settings), Theirs([other], amsgrad=True, **settings)
    for step in range(50):
        gradient = torch.randn(20, 10) * (1 + step % 7)
        for parameter, optimiser in zip((one, other), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    return Parity("dinomaly", "anomalib 2.7.0, StableAdamW", "weights after 50 steps", _furthest([one], [other]), 1e-4)


def _schedule() -> Parity:
    from anomalib.models.image.dinomaly.components import WarmCosineScheduler

    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = WarmCosineScheduler(optimiser, base_value=2e-3, final_value=2e-4, total_iters=500, warmup_iters=100).schedule
    furthest = max(abs(2e-3 * Dinomaly()._rate(step, 500) - rate) / 2e-3 for step, rate in enumerate(schedule))
    return Parity("dinomaly", "anomalib 2.7.0, WarmCosineScheduler", "learning rate of 500 steps, relative", float(furthest), 1e-4)


def _offline(extractor: type) -> type:
    return type("Offline", (extractor,), {"__init__": lambda self, **given: extractor.__init__(self, **{**given, "pre_trained": False})})


def _renamed(name: str) -> str:
    for theirs, ours in PLACES.items():
        name = name.replace(theirs, ours)
    return name


def _furthest(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest absolute difference; shapes must be the same."""
    if [one.shape for one in ones] != [other.shape for other in others]:
        raise ValueError(f"shapes differ: {[tuple(one.shape) for one in ones]}, {[tuple(other.shape) for other in others]}")
    return max((one - other).abs().max().item() for one, other in zip(ones, others, strict=True))
