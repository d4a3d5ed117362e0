"""Files of every kind of media, three of each and of different lengths."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.media_files import tone, write_film, write_wave


@pytest.fixture(scope="session")
def media_files(tmp_path_factory) -> dict[str, list[Path]]:
    folder, draw = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    files: dict[str, list[Path]] = {kind: [] for kind in ("image", "video", "audio", "series", "text")}
    for number, length in enumerate((5, 12, 9)):
        at = {kind: folder / f"{number}{suffix}" for kind, suffix in zip(files, (".png", ".mp4", ".wav", ".csv", ".txt"), strict=True)}
        Image.fromarray(draw.integers(0, 255, (40 + length, 60, 3), np.uint8)).save(at["image"])
        write_film(at["video"], draw.integers(0, 255, length).tolist(), size=48)
        write_wave(at["audio"], [tone(300 + 100 * number, length / 8) + 0.05 * draw.normal(size=length * 2000)])
        rows = [",".join(f"{value:.4f}" for value in row) for row in draw.normal(size=(10 * length, 2))]
        at["series"].write_text("\n".join(["force,heat", "1.5,", *rows]))
        at["text"].write_text(" ".join(draw.choice(["the", "seam", "weld", "is", "porous", "good", "crack"], length)))
        for kind, path in at.items():
            files[kind].append(path)
    return files
