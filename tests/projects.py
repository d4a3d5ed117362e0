"""A whole project in a temporary folder: the code of this repository, a dozen small images with planted defects, a random encoder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
SIZE = 64

SECTIONS = f"""\
datasets:
  tiny:
    adapter: folder
    source: photos
encoders:
  pixels:
    kind: pixels
    image_size: {SIZE}
  net:
    kind: cnn
    image_size: {SIZE}
    backbone: tf_efficientnet_lite0
    weights: random
    runtime: torch
    layers:
      - layer1
      - layer2
      - layer3
extracts:
  tiny-pixels:
    dataset: tiny
    encoder: pixels
    reads: data/tiny/samples.parquet
    code: stages/encoders/pixels.py
  tiny-net:
    dataset: tiny
    encoder: net
    reads: features/tiny/pixels
    code: stages/encoders/cnn.py
models:
  patchcore:
    detector: memory_bank.patchcore
    coreset_ratio: 0.1
  padim:
    detector: density.padim
    channels: 5
  stfpm:
    detector: distillation.stfpm
    backbone: tf_efficientnet_lite0
    steps: 2
    batch_size: 4
  trivial:
    rows:
      mean-image:
        detector: trivial.mean_image
      random-score:
        detector: trivial.random_score
runs:
  tiny-patchcore:
    dataset: tiny
    model: patchcore
    encoder: net
    pixels: pixels
    code: stages/detectors/memory_bank/patchcore.py
    maths: stages/detectors/memory_bank/maths
  tiny-padim:
    dataset: tiny
    model: padim
    encoder: net
    pixels: pixels
    code: stages/detectors/density/padim.py
    maths: stages/detectors/density/maths
  tiny-trivial:
    dataset: tiny
    model: trivial
    encoder: pixels
    pixels: pixels
    code: stages/detectors/trivial
    maths: stages/detectors/trivial
"""


def photograph(folder: Path, normal: int = 12, anomalous: int = 4) -> None:
    """MVTec-like photos of one category: noise around a grey, and a bright square where there is a defect."""
    rng = np.random.default_rng(0)
    for split, kind, count in (("train", "good", normal), ("test", "good", 4), ("test", "square", anomalous)):
        for number in range(count):
            image = rng.integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
            if kind == "square":
                row, column = rng.integers(8, SIZE - 24, 2)
                image[row : row + 16, column : column + 16] = 250
                mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
                mask[row : row + 16, column : column + 16] = 255
                _save(mask, folder / "ground_truth" / kind / f"{number:03d}_mask.png")
            _save(image, folder / split / kind / f"{number:03d}.png")


def tiny_project(folder: Path) -> Path:
    """The project, ready for `dvc repro`: params.yaml and dvc.yaml are this repository's, with one small data set in place of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    protocol = (ROOT / "params.yaml").read_text().split("\nprotocol:", 1)[1]
    settings = protocol.replace("    - 1\n    - 2\n", "    - 1\n", 1).replace("map_size: 224", f"map_size: {SIZE}")
    for old, new in (
        ("folds: 5", "folds: 3"),
        ("resamples: 1000", "resamples: 100"),
        ("enabled: true", "enabled: false"),
        ("processes: 2", "processes: 1"),
    ):
        assert old in settings, old
        settings = settings.replace(old, new)
    (folder / "params.yaml").write_text(f"{SECTIONS}protocol:{settings}")
    stages = (ROOT / "dvc.yaml").read_text().replace("/solar", "/tiny")
    stages = re.sub(r"^  search_series:\n(?:    .*\n|\n)+", "", stages, flags=re.MULTILINE)  # images only
    (folder / "dvc.yaml").write_text(re.sub(r"^ +- (?:\S+/(?:parts|server|station|weld)\S*|series|records)\n", "", stages, flags=re.MULTILINE))
    photograph(folder / "photos")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the project, with what it printed."""
    arguments = (
        [sys.executable, *command[1:]]
        if command[0] == "python"
        else [sys.executable, "-m", *command]
        if command[0] == "dvc"
        else list(command)
    )
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True)


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
