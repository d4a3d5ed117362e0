"""Training on stored features beside anomalib, which runs its frozen backbone at every step: what is spared, and what could be.

Both sides start from decoded pixels and train EPOCHS epochs on the same schedule; Assay encodes once, which is part of its time. The bound
is that of torch's count of operations: of all that anomalib does, over the same without the passes of its backbone, but with one pass of
Assay's encoder. It says what a pass that is spared is worth if all else stays as it is.

    python -m benchmarks.peers.feature_fed -o docs/peers_training.md
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.setting import (
    BACKBONE,
    BATCH,
    LAYERS,
    RESNET,
    SIZE,
    THEIR_LAYERS,
    Encoded,
    Images,
    frozen,
    images,
    normalised,
    printed,
    share_weights,
    spearman,
    timed,
)
from stages.detectors.density.dfm import DFM
from stages.detectors.discriminative.supersimplenet import SuperSimpleNet
from stages.detectors.distillation.fre import FRE
from stages.detectors.distillation.reverse_distillation import ReverseDistillation
from stages.detectors.flow.fastflow import FastFlow
from stages.detectors.memory_bank.cfa import CFA
from stages.encoders.encoder import Encoder
from stages.metrics.footprint import flops
from stages.training import Run
from stages.types import Detector

EPOCHS = 5
COUNTED = 2  # images of the run whose operations are counted; they are proportional to the images
WIDTH_RATIO = 4  # CFA's gamma_d: its full width would take most of the time of the page


class Peer(NamedTuple):
    """anomalib's side. train: the whole training, from pixels. passes: of the frozen backbone over the training images."""

    model: torch.nn.Module
    backbone: torch.nn.Module
    train: Callable[[Tensor], None]
    passes: int = EPOCHS


class Row(NamedTuple):
    what: str
    ours_s: float
    theirs_s: float
    bound: float
    operations: float | None  # of the trained part, ours over theirs; None where torch counts next to nothing
    agreement: float | None

    @property
    def ratio(self) -> float:
        return self.theirs_s / self.ours_s


def compare(data: Images, lite: Encoder, resnet: Encoder, rounds: int) -> Iterator[Row]:
    schedule = {"epochs": EPOCHS, "batch_size": BATCH}
    for what, detector, make, encoder in (
        ("DFM, EfficientNet-Lite0, one pass", DFM(), _dfm, lite),
        ("FRE, EfficientNet-Lite0", FRE(**schedule), _fre, lite),
        ("FastFlow, ResNet-18 (random)", FastFlow(**schedule), _fastflow, resnet),
        ("Reverse Distillation, ResNet-18 (random)", ReverseDistillation(**schedule), _reverse_distillation, resnet),
        ("SuperSimpleNet, EfficientNet-Lite0, layer3", SuperSimpleNet(layers=("layer3",), **schedule), _supersimplenet, lite),
        (f"CFA, ResNet-18 (random), width / {WIDTH_RATIO}", CFA(width_ratio=WIDTH_RATIO, **schedule), _cfa, resnet),
    ):
        yield _row(what, detector, make, encoder, data, rounds)


def _row(what: str, detector: Detector, make: Callable[[Encoder], Peer], encoder: Encoder, data: Images, rounds: int) -> Row:
    """Both sides in turn, `rounds` times; of each the least counts, which other work on the machine has disturbed least."""
    ours, theirs = [], []
    for _ in range(rounds):
        peer = make(encoder)
        theirs.append(timed(lambda peer=peer: peer.train(data.train)).seconds)
        ours.append(timed(lambda: detector.fit(Encoded(encoder, data.train), None, Run(seed=0, quiet=True))).seconds)
    agreement = _agreement(detector, peer, encoder, data.test)
    return Row(what, min(ours), min(theirs), *_counted(detector, make(encoder), encoder, data.train[:COUNTED]), agreement)


def _counted(detector: Detector, peer: Peer, encoder: Encoder, few: Tensor) -> tuple[float, float | None]:
    """The bound, and the operations of the trained part, ours over theirs."""
    stored, images = Encoded(encoder, few), normalised(encoder, few)
    encoding, backbone = flops(lambda: encoder.eager(few)), flops(lambda: peer.backbone(images))
    whole, own = flops(lambda: peer.train(few)), flops(lambda: detector.fit(stored, None, Run(seed=0, quiet=True)))
    trained = whole - peer.passes * backbone
    return whole / (trained + encoding), own / trained if trained > backbone / 100 else None


def _agreement(detector: Detector, peer: Peer, encoder: Encoder, pixels: Tensor) -> float | None:
    """Spearman correlation of the scores of these images, where nothing is drawn; random starts differ."""
    if peer.passes > 1:
        return None
    ours = torch.cat([detector.score(batch.features).image_score for batch in Encoded(encoder, pixels)])
    peer.model.eval()
    with torch.inference_mode():
        theirs = torch.cat([peer.model(normalised(encoder, part)).pred_score for part in pixels.split(BATCH)])
    return spearman(ours.numpy(), theirs.numpy())


def _descending(
    encoder: Encoder, loss: Callable[[Tensor], Tensor], optimiser: torch.optim.Optimizer, schedule: Any = None, **backward: bool
) -> Callable[[Tensor], None]:
    """A training by gradient descent, of pixels in batches; loss: of normalised images."""

    def train(pixels: Tensor) -> None:
        for _ in range(EPOCHS):
            for part in pixels.split(BATCH):
                value = loss(normalised(encoder, part))
                optimiser.zero_grad()
                value.backward(**backward)
                optimiser.step()
            if schedule is not None:
                schedule.step()

    return train


def _fastflow(encoder: Encoder) -> Peer:
    from anomalib.models.image.fastflow.loss import FastflowLoss
    from anomalib.models.image.fastflow.torch_model import FastflowModel

    model, loss = FastflowModel((SIZE, SIZE), RESNET), FastflowLoss()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    return Peer(model, model.feature_extractor, _descending(encoder, lambda images: loss(*model(images)), adam))


def _reverse_distillation(encoder: Encoder) -> Peer:
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    model, loss = ReverseDistillationModel(RESNET, (SIZE, SIZE), LAYERS, AnomalyMapGenerationMode.ADD), ReverseDistillationLoss()
    adam = torch.optim.Adam([*model.decoder.parameters(), *model.bottleneck.parameters()], lr=0.005, betas=(0.5, 0.999))
    return Peer(model, model.encoder, _descending(encoder, lambda images: loss(*model(images)), adam))


def _supersimplenet(encoder: Encoder) -> Peer:
    from anomalib.models.image.supersimplenet.loss import SSNLoss
    from anomalib.models.image.supersimplenet.torch_model import SupersimplenetModel

    model, loss = SupersimplenetModel(backbone=BACKBONE, layers=[THEIR_LAYERS["layer3"]]), SSNLoss()
    groups = [{"params": model.adaptor.parameters(), "lr": 1e-4}, {"params": model.segdec.parameters(), "lr": 2e-4}]
    adam = torch.optim.AdamW(groups, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [int(EPOCHS * 0.8), int(EPOCHS * 0.9)], 0.4)

    def descended(images: Tensor) -> Tensor:
        logits, scores, masks, labels = model(images, labels=torch.zeros(len(images)))
        return loss(logits, scores, masks, labels)

    return Peer(model, model.feature_extractor.feature_extractor, _descending(encoder, descended, adam, schedule))


def _cfa(encoder: Encoder) -> Peer:
    """One pass more, over which the centres are averaged. Its `backward` keeps the graph, as anomalib's own does."""
    from anomalib.models.image.cfa.loss import CfaLoss
    from anomalib.models.image.cfa.torch_model import CfaModel

    counts = {"num_nearest_neighbors": 3, "num_hard_negative_features": 3, "radius": 1e-5}
    model, loss = CfaModel(RESNET, gamma_c=1, gamma_d=WIDTH_RATIO, **counts), CfaLoss(**counts)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-4, amsgrad=True)
    descend = _descending(encoder, lambda images: loss(model(images)), adam, retain_graph=True)

    def train(pixels: Tensor) -> None:
        model.initialize_centroid([SimpleNamespace(image=normalised(encoder, part)) for part in pixels.split(BATCH)])
        descend(pixels)

    return Peer(model, model.feature_extractor, train, EPOCHS + 1)


def _fre(encoder: Encoder) -> Peer:
    from anomalib.models.image.fre.torch_model import FREModel

    pool, channels, side = 2, 112, SIZE // 16
    model = FREModel(BACKBONE, THEIR_LAYERS["layer3"], channels * (side // pool) ** 2, 220, pooling_kernel_size=pool)
    adam = torch.optim.Adam(model.fre_model.parameters(), lr=1e-3)

    def loss(images: Tensor) -> Tensor:
        given, found, _ = model.get_features(images)
        return torch.nn.functional.mse_loss(found, given)

    return Peer(model, model.feature_extractor, _descending(encoder, loss, adam))


def _dfm(encoder: Encoder) -> Peer:
    from anomalib.models.image.dfm.torch_model import DFMModel

    model = DFMModel(BACKBONE, THEIR_LAYERS["layer3"], pooling_kernel_size=4, n_comps=0.97)

    def train(pixels: Tensor) -> None:
        for part in pixels.split(BATCH):
            model(normalised(encoder, part))
        model.fit()

    return Peer(model, model.feature_extractor, train, 1)


HEAD = [
    "| what | Assay, CPU s | anomalib, CPU s | ratio | bound by FLOPs | share of bound | FLOPs of the trained part | agreement |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
]


def line(row: Row) -> str:
    operations = "" if row.operations is None else f"{row.operations:.2f}"
    agreement = "" if row.agreement is None else f"{row.agreement:.4f}"
    measured = f"{row.ours_s:.2f} | {row.theirs_s:.2f} | {row.ratio:.2f}x | {row.bound:.2f}x | {row.ratio / row.bound:.0%}"
    return f"| {row.what} | {measured} | {operations} | {agreement} |"


def page(lines: list[str], arguments: argparse.Namespace) -> str:
    import anomalib

    about = (
        f"{arguments.train} training images of the category {arguments.category} of the generated data set at {SIZE} px, {EPOCHS} epochs in batches of "
        f"{BATCH} (DFM: one pass), the defaults of each method where nothing is said; anomalib {anomalib.__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread. CPU seconds of one process, the least of {arguments.rounds} rounds in which both sides take turns."
    )
    method = __doc__.split("\n\n")[1].strip().replace("EPOCHS epochs ", "")
    return "\n".join(["# Training on stored features, beside anomalib", "", method, "", *HEAD, *lines, "", about, "", NOTES, ""])


NOTES = """\
- `make peers` makes this page again.
- The same frozen weights on both sides. anomalib's FastFlow, Reverse Distillation and CFA take no EfficientNet: there a ResNet-18 with one set of
  random weights stands on both sides. Optimiser, learning rate, batch size and the method's own options are equal; SuperSimpleNet sees one layer
  and CFA's descriptor is narrow so that the page is made in minutes.
- What lies above the bound is won elsewhere; where, was read in the code and not measured one by one.
  FLOPs of the trained part: Assay's over anomalib's. Below 1, fewer operations do the same:
  FastFlow's permutation is an index and not a convolution, and CFA looks for the nearest centres without a gradient. torch counts convolutions
  and matrix products alone.
- Beyond that, encoding is faster in ONNX Runtime than the same network in PyTorch, and Assay's encoder ends at the last layer that is asked
  for, where anomalib's EfficientNet runs all of its blocks; that is in the bound, and is all of it for DFM.
- agreement: Spearman correlation of the scores of the test images, where nothing is drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--category", default="washer")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=20, help="good and bad images each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, default=None, help="write the page here; without it the table is printed only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lite, resnet = frozen(BACKBONE), frozen(RESNET)
    share_weights()
    rows = printed(compare(images(arguments.category, arguments.train, arguments.test), lite, resnet, arguments.rounds), line)
    if arguments.out:
        arguments.out.write_text(page(rows, arguments), encoding="utf-8")


if __name__ == "__main__":
    main()
