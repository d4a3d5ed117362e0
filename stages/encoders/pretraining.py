"""What both trainings of weights share: images as batches, the part of them that is held out, and the file with its checksum.

The yardstick is a constant: a network that, on images it never saw, predicts no better than the best constant has learnt nothing, and its
weights are not written.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from stages import io
from stages.datasets.images import is_image_name
from stages.datasets.samples import manifest_samples, root_of
from stages.encoders import weights, weights_bundle
from stages.encoders.pixels import load_pixels
from stages.errors import UserError
from stages.seed import derive, torch_generator
from stages.training import Run
from stages.types import Batch, Features

HELD_OUT, MOST_HELD_OUT = 0.1, 200  # share of the images, and images
CACHED = 500  # decoded images that stay in memory
RESUME = Path(".assay/resume/weights")


class Pictures:
    """Implements stages.types.Batches over image files, decoded as they are asked for and resized whole."""

    def __init__(self, paths: list[Path], image_size: int, batch_size: int) -> None:
        self.paths, self.batch_size, self.samples = paths, batch_size, len(paths)
        self._read = functools.lru_cache(CACHED)(functools.partial(load_pixels, size=image_size))

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.samples, self.batch_size):
            yield self.take(list(range(first, min(first + self.batch_size, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        paths = [self.paths[position] for position in positions]
        features: Features = {"pixels": torch.stack([self._read(path) for path in paths])}
        return Batch(
            features, torch.zeros(len(paths), dtype=torch.int64), None, [path.name for path in paths], ["pretraining"] * len(paths)
        )


class Outcome(NamedTuple):
    """loss, constant: of the network and of the best constant, both on the held-out images."""

    name: str
    file: str
    sha256: str
    images: int
    held_out: int
    steps: int
    loss: float
    constant: float


def find_pictures(folders: list[Path], datasets: list[str]) -> list[Path]:
    """Image files below `folders`, and the training images (no others) of prepared data sets. Raises UserError for fewer than two."""
    missing = [folder.as_posix() for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{', '.join(missing)} is no folder: give folders that hold images")
    found = {path for folder in folders for path in folder.rglob("*") if path.is_file() and is_image_name(path)}
    for dataset in datasets:
        root = root_of(Path("data", dataset, "dataset.json"))
        train = {sample["sample_id"] for sample in manifest_samples(dataset) if sample["split"] == "train"}
        rows = io.read_table(Path("data", dataset, "samples.parquet"))
        found |= {root / row["image_path"] for row in rows if row["sample_id"] in train}
    if len(found) < 2:
        raise UserError(
            f"{len(found)} images found: at least 2 are needed, one to learn from and one to measure on. Give --images or --dataset"
        )
    return sorted(found)


def divided(paths: list[Path], image_size: int, batch_size: int, seed: int) -> tuple[Pictures, Pictures]:
    """What is learnt from, and what is measured on: a tenth of the images, drawn, but at most 200."""
    order = torch.randperm(len(paths), generator=torch_generator(seed, "held out")).tolist()
    held_out = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(paths))))
    parts = (sorted(order[held_out:]), sorted(order[:held_out]))
    learnt, measured = (Pictures([paths[place] for place in part], image_size, batch_size) for part in parts)
    return learnt, measured


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with weights that `seed` decides; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        return build()


def run_of(name: str, about: dict[str, Any], seed: int, device: str) -> Run:
    """A run that goes on where an earlier one with the same settings was stopped."""
    return Run(seed=seed, device=device, label=name, resume=RESUME / f"{name}-{io.content_hash(about)[:16]}")


def list_hash(paths: list[Path]) -> str:
    """Names and sizes, not places: the same images in another folder are the same images."""
    return io.content_hash(sorted((path.name, path.stat().st_size) for path in paths))


def store(name: str, network: nn.Module, about: dict[str, Any], outcome: dict[str, Any], folder: Path, run: Run) -> Outcome:
    """Write the weights whole, note their checksum in the folder's weights.json, and forget what a stopped run would go on from.

    Raises UserError, and writes nothing, where the network is no better than a constant on held-out images.
    """
    loss, constant = outcome["loss"], outcome["constant"]
    if run.resume:
        shutil.rmtree(run.resume, ignore_errors=True)
    if not loss < constant:
        raise UserError(
            f"{name}: after {outcome['steps']} steps the loss on held-out images is {loss:.4f}, that of a constant {constant:.4f}: nothing "
            "was learnt, and nothing is written. Train for more steps, or on more images"
        )
    path = folder / weights.row_of(name).file
    state = {key: value.cpu() for key, value in network.state_dict().items()}
    io.write_model(path, state, {**about, **outcome})
    note = weights_bundle.note_file(name, path, folder)
    return Outcome(name, path.as_posix(), note["sha256"], **outcome)
