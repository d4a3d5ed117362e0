"""Files of embeddings as users have them, good and hostile."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class Payload:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return Path.touch, (self.place / "touched",)


def series(steps: int = 4, width: int = 6, **more: object) -> dict:
    return {"embeddings": torch.arange(steps * width, dtype=torch.float32).reshape(steps, width), "labels": None, **more}


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(300 * 2**20))


def cut(path: Path) -> None:
    torch.save(series(), path)
    path.write_bytes(path.read_bytes()[:-300])


def damaged(path: Path) -> None:
    """A good archive with a pickle that breaks off."""
    torch.save(series(), path)
    with zipfile.ZipFile(path) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w") as bad:
        for name, content in members.items():
            bad.writestr(name, content[: len(content) // 2] if name.endswith("data.pkl") else content)


def save(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


NAN = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
# title -> (what writes the file, the code, the key that the error names)
HOSTILE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "code in a pickle": (lambda path: torch.save({"embeddings": Payload(path.parent)}, path), "E103", ""),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps(Payload(path.parent))), "E103", ""),
    "the oldest format": (lambda path: torch.save(series(), path, _use_new_zipfile_serialization=False), "E103", ""),
    "a deflate bomb": (bomb, "E103", ""),
    "a cut archive": (cut, "E103", ""),
    "a damaged pickle": (damaged, "E103", ""),
    "nothing": (lambda path: path.write_bytes(b""), "E103", ""),
    "a view of one number as many": (save({"embeddings": torch.zeros(1, 1).expand(10**6, 10**4)}), "E103", ""),
    "an array of objects": (save({"embeddings": np.array([{}, None], dtype=object)}), "E325", "embeddings"),
    "a sparse tensor": (save({"embeddings": torch.eye(3).to_sparse()}), "E325", "embeddings"),
    "a tensor without memory": (save({"embeddings": torch.empty(3, 3, device="meta")}), "E325", "embeddings"),
    "complex numbers": (save({"embeddings": torch.zeros(2, 2, dtype=torch.complex64)}), "E325", "embeddings"),
    "a list": (save({"embeddings": [[1.0, 2.0]]}), "E325", "embeddings"),
    "NaN in an array": (save({"embeddings": NAN.numpy(), "labels": 0}), "E301", "embeddings"),
    "NaN": (save({"embeddings": NAN, "labels": 0}), "E301", "embeddings"),
    "infinity in a general file": (save({"modalities": {"gas": {"tokens": torch.tensor([[np.inf]])}}}), "E301", "modalities.gas.tokens"),
    "beyond float32": (save({"embeddings": np.array([[1e300]])}), "E301", "embeddings"),
    "no axis": (save({"embeddings": torch.tensor(1.0)}), "E322", "embeddings"),
    "five axes": (save({"video_tokens": torch.zeros(1, 1, 1, 1, 2)}), "E322", "video_tokens"),
    "no token": (save({"audio_tokens": torch.zeros(0, 4)}), "E323", "audio_tokens"),
    "no width": (save({"audio_tokens": torch.zeros(4, 0)}), "E323", "audio_tokens"),
    "no modality": (save({"labels": 1, "note": 3}), "E321", ""),
    "no dict": (save(torch.zeros(3, 3)), "E321", ""),
    "modalities that are none": (save({"modalities": [1, 2]}), "E321", "modalities"),
    **{
        f"a modality named {name}": (save({"modalities": {name: torch.zeros(1, 2)}}), "E321", f"modalities.{name}")
        for name in ("record_id", "label", "step_label", "score", "seed", "stored")
    },
    "a modality named as a path": (save({"modalities": {"../x": torch.zeros(1, 2)}}), "E321", "modalities"),
    "the label 2": (save(series(label=2)), "E326", "label"),
    "the label -1": (save({**series(), "labels": -1}), "E326", "labels"),
    "half a label": (save({**series(), "labels": 0.5}), "E326", "labels"),
    "a label as text": (save({**series(), "label": "1"}), "E325", "label"),
    "labels without binary": (save({**series(), "labels": {"kind": 1}}), "E326", "labels"),
    "labels of other steps": (save({**series(4), "labels": torch.tensor([0, 1, 0])}), "E326", "labels"),
    "labels that disagree": (save({**series(), "labels": 0, "label": 1}), "E326", "label"),
    "times for other tokens": (save({"modalities": {"gas": {"tokens": torch.zeros(3, 2), "time": torch.zeros(2)}}}), "E327", "modalities.gas.time"),
    "two of one modality": (save({**series(), "modalities": {"series": torch.zeros(1, 2)}}), "E327", "modalities.series"),
    "a split of its own": (save(series(split="dev")), "E327", "split"),
    "an id that is a list": (save(series(id=[1])), "E325", "id"),
}


def write_mixed(folder: Path, count: int = 30) -> None:
    """All three schemas in turn, both labels in each, two folders."""
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        label = number // 3 % 2
        if number % 3 == 0:
            content = {
                "audio_tokens": torch.randn(5, 1, 12, generator=draw) + label,
                "video_tokens": torch.randn(4, 7, 8, generator=draw),
                "labels": {"binary": label},
            }
        elif number % 3 == 1:
            steps = np.array([0, 0, label], dtype=np.int64)
            content = {"embeddings": torch.randn(3, 9, generator=draw).numpy() + label, "labels": steps, "filename": f"run{number}.csv"}
        else:
            content = {"img_feat": torch.randn(16, generator=draw).half() + label, "text_feat": torch.randn(3, 10, generator=draw).double(), "label": label}
        path = folder / ("morning" if number % 2 else "evening") / f"{number:03d}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
