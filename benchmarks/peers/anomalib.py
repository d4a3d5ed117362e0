"""PatchCore, PaDiM, STFPM and AUPRO beside anomalib 2.7.0: the same weights, the same images, one process, one thread, CPU seconds.

Run by `make peers`, in an environment that holds both. The images are one category of the generated data set at 256 px, whole, levels 0..255;
both sides normalise as the backbone asks. Each side goes from those pixels to scores: Assay encodes with ONNX Runtime and fits on stored features,
anomalib's torch models are driven by a bare loop in batches of 8, without Lightning. Nothing is downloaded: timm builds the network and the weights
of the built-in package are loaded into it on both sides. MALLOC_MMAP_THRESHOLD_ is set for both: without it the peer's coreset, which makes a
large temporary at each pick, was seen to take all memory on a machine with 24 GB. Training on stored features has a page of its own: `feature_fed`.

    python -m benchmarks.peers.anomalib --train 60 --category washer -o docs/peers.md
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.setting import (
    BACKBONE,
    BATCH,
    SIZE,
    THEIR_LAYERS,
    Encoded,
    Images,
    Timed,
    frozen,
    images,
    normalised,
    printed,
    share_weights,
    spearman,
    timed,
)
from stages.detectors.density.padim import PaDiM
from stages.detectors.distillation.stfpm import STFPM
from stages.detectors.memory_bank.maths.coreset import greedy_coreset
from stages.detectors.memory_bank.patchcore import PatchCore
from stages.encoders.encoder import Encoder
from stages.metrics.footprint import flops
from stages.metrics.pixels import pixel_metrics
from stages.training import Run


class Comparison(NamedTuple):
    """One row of the table; a goal is a least ratio of times."""

    what: str
    ours_s: float
    theirs_s: float
    agreement: str
    goal: str


def ours(make: Callable[[], Any], encoder: Encoder, data: Images) -> tuple[Any, Timed]:
    """The fitted detector, and scores and maps of the test images with the time of encoding, fitting and scoring."""
    detector = make()

    def all_of_it() -> tuple[np.ndarray, np.ndarray]:
        detector.fit(Encoded(encoder, data.train), None, Run(seed=0, quiet=True))
        predictions = [detector.score(batch.features) for batch in Encoded(encoder, data.test)]
        return tuple(torch.cat(parts).numpy() for parts in zip(*predictions, strict=True))

    done = timed(all_of_it)
    return detector, done


def theirs(model: torch.nn.Module, learn: Callable[[Tensor], None], finish: Callable[[], None], data: Images, normalise: Any) -> Timed:
    """Scores and maps of the test images, with the time from pixels."""

    def all_of_it() -> tuple[np.ndarray, np.ndarray]:
        model.train()
        for part in data.train.split(BATCH):
            learn(normalise(part))
        finish()
        model.eval()
        with torch.inference_mode():
            predictions = [model(normalise(part)) for part in data.test.split(BATCH)]
        maps = torch.cat([one.anomaly_map.reshape(-1, SIZE, SIZE) for one in predictions])
        scores = [one.pred_score if one.pred_score is not None else one.anomaly_map.flatten(1).amax(1) for one in predictions]
        return torch.cat([one.flatten() for one in scores]).numpy(), maps.numpy()

    return timed(all_of_it)


def compare(data: Images, encoder: Encoder) -> Iterator[Comparison]:
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    learn_nothing, normalise = torch.no_grad(), partial(normalised, encoder)
    for ratio, learnt in ((0.1, data), (1.0, data._replace(train=data.train[: len(data.train) // 5]))):
        model = PatchcoreModel([THEIR_LAYERS["layer2"], THEIR_LAYERS["layer3"]], BACKBONE, pre_trained=True)
        with learn_nothing:
            peer = theirs(model, model, lambda model=model, ratio=ratio: model.subsample_embedding(ratio), learnt, normalise)
        _, own = ours(lambda ratio=ratio: PatchCore(coreset_ratio=ratio, search="torch"), encoder, learnt)
        goal = "5x" if ratio == 0.1 else "agreement >= .999"
        what = f"PatchCore, ratio {ratio}, {len(learnt.train)} images: fit + score"
        yield Comparison(what, own.seconds, peer.seconds, _agree(own, peer), goal)
    yield _coreset(data, encoder)
    yield _aupro(own.value[1], data.mask)
    detector, own = ours(lambda: PaDiM(channels=100), encoder, data)
    model = PadimModel(BACKBONE, list(THEIR_LAYERS.values()), pre_trained=True, n_features=100)
    model.idx = detector.kept.clone()
    with learn_nothing:
        peer = theirs(model, model, model.fit, data, normalise)
    yield Comparison("PaDiM, 100 channels: fit + score", own.seconds, peer.seconds, _agree(own, peer), "1.3x, agreement >= .999")
    yield from _students(data, encoder, normalise)


def _agree(own: Timed, peer: Timed) -> str:
    return f"{spearman(own.value[0], peer.value[0]):.4f}"


def _coreset(data: Images, encoder: Encoder) -> Comparison:
    from anomalib.models.components import KCenterGreedy

    detector = PatchCore(coreset_ratio=1.0, search="torch")
    bank = torch.cat([detector._patches(batch.features)[0].flatten(0, 1) for batch in Encoded(encoder, data.train)])
    size = len(bank) // 10
    own = timed(lambda: greedy_coreset(bank, size))
    peer = timed(lambda: KCenterGreedy(bank, 0.1).select_coreset_idxs())
    return Comparison(f"coreset, {size:,} of {len(bank):,} x {bank.shape[1]}", own.seconds, peer.seconds, "", "")


def _aupro(maps: np.ndarray, masks: np.ndarray) -> Comparison:
    """Ours gives all five pixel metrics, anomalib's the AUPRO alone."""
    from anomalib.metrics.aupro import _AUPRO

    own = timed(lambda: pixel_metrics(maps, masks, (0.3,)))

    def measure() -> float:
        metric = _AUPRO()
        metric.update(torch.from_numpy(maps), torch.from_numpy(masks).int())
        return float(metric.compute())

    peer = timed(measure)
    values = f"{own.value['aupro']:.5f} / {peer.value:.5f}"
    return Comparison(f"AUPRO of {len(maps)} maps of {SIZE} px", own.seconds, peer.seconds, values, "10x")


def _students(data: Images, encoder: Encoder, normalise: Any) -> list[Comparison]:
    """One epoch of STFPM, and scoring. The bound: what is left of the operations when the teacher's features are stored."""
    from anomalib.models.image.stfpm.loss import STFPMLoss
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    model, loss = STFPMModel(list(THEIR_LAYERS.values()), BACKBONE), STFPMLoss()
    optimiser = torch.optim.SGD(model.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)

    def learn(batch: Tensor) -> None:
        teacher, student = model(batch)
        optimiser.zero_grad()
        loss(teacher, student).backward()
        optimiser.step()

    def epoch() -> None:
        model.train()
        for part in data.train.split(BATCH):
            learn(normalise(part))

    peer = timed(epoch)
    stored = Encoded(encoder, data.train)
    detector = STFPM(backbone=BACKBONE, epochs=1, batch_size=BATCH, patience=None)
    own = timed(lambda: detector.fit(stored, None, Run(seed=0, quiet=True)))
    one = data.train[:1]
    forward = flops(lambda: encoder.eager(one))
    train_bound = (forward + 3 * forward) / (3 * forward)  # a backward pass is twice a forward one
    rows = [Comparison("STFPM, one epoch on stored features", own.seconds, peer.seconds, "", f"bound by FLOPs {train_bound:.2f}x")]
    batch = next(iter(stored))
    model.eval()
    with torch.inference_mode():
        peer = timed(lambda: model(normalise(data.train[:BATCH])))
    own = timed(lambda: detector.score({**encoder.encode(batch.features["pixels"]), "pixels": batch.features["pixels"]}))
    return [*rows, Comparison("STFPM, score from pixels", own.seconds, peer.seconds, "", "bound by FLOPs 1.00x")]


HEAD = ["| what | Assay, CPU s | anomalib, CPU s | ratio | agreement | goal |", "| --- | ---: | ---: | ---: | ---: | --- |"]


def line(row: Comparison) -> str:
    return f"| {row.what} | {row.ours_s:.2f} | {row.theirs_s:.2f} | {row.theirs_s / row.ours_s:.1f}x | {row.agreement} | {row.goal} |"


def page(rows: list[str], arguments: argparse.Namespace, count: Images) -> str:
    """docs/peers.md, whole."""
    import anomalib

    about = (
        f"Category {arguments.category} of the generated data set, {len(count.train)} training and {len(count.test)} test images at {SIZE} px; "
        f"{BACKBONE} with the built-in weights on both sides; anomalib {anomalib.__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, one thread. CPU seconds of one process, from decoded pixels to scores."
    )
    return "\n".join(["# Beside anomalib", "", __doc__.split("\n\n")[0], "", *HEAD, *rows, "", about, "", NOTES, ""])


NOTES = """\
- `make peers` makes this page again, in an environment of its own (`.venv-peers`) that sees the packages of `.venv` and adds anomalib without its
  own PyTorch.
- agreement: Spearman correlation of the image scores of the test images; for AUPRO the two values.
- PatchCore's coresets start at different patches and anomalib chooses its own in a random projection, so at ratio 0.1 the banks differ; at 1.0 both
  keep every patch.
- PaDiM uses the same channels on both sides.
- STFPM: the student does nearly all the work on both sides, so by count of operations Assay, which spares the teacher's forward pass while it trains,
  can win no more than the bound. What lies above it comes from ONNX Runtime for the teacher and channels-last memory for the student.
- anomalib has what Assay has not: more models, video and 3-D data, OpenVINO export, a graphical application, a large community."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--category", default="washer")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=20, help="good and bad images each")
    parser.add_argument("-o", "--out", type=Path, default=None, help="write the page here; without it the table is printed only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lite = frozen(BACKBONE)
    share_weights()
    data = images(arguments.category, arguments.train, arguments.test)
    rows = printed(compare(data, lite), line)
    if arguments.out:
        arguments.out.write_text(page(rows, arguments, data), encoding="utf-8")


if __name__ == "__main__":
    main()
