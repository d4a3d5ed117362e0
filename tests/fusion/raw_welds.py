"""Made-up welds as raw media of few pixels, whose class shows in every medium, and a configuration for them."""

import numpy as np
import torch

from stages.datasets.record_adapters import RecordRow
from stages.datasets.records import NORMAL
from stages.datasets.weld_files import NOMINAL
from stages.datasets.welding_dataset import Medium, Shape, WeldingDataset
from stages.fusion import finetuned
from stages.fusion.finetuned import Config, Reading
from stages.fusion.raw_media import MediaSource

SHAPE = Shape(frames=4, frame_size=16, views=3, image_size=32, bands=16, steps=32, rate_hz=32.0, clock_s=1.0)
OPTIONS = {
    "queries": 2, "layers": 1, "heads": 2, "ffn": 32, "features": 16,
    "encoding": {"width": 16, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32},
    "learning": {"epochs": 2, "classes_per_batch": 2, "per_class": 2, "learning_rate": 0.01},
}  # fmt: skip


def config(adapt="frozen", classes=3, **changes):
    backbones = dict.fromkeys(finetuned.KINDS, "twin")
    prints = {name: finetuned.fingerprint(name, "twin", None, 0) for name in backbones}
    names = [NORMAL, *(f"fault_{number:02d}" for number in range(1, classes))]
    given = {"rank": 4, "last": 1, "seed": 0, "options": OPTIONS, "dataset": "weld", "data": "-", "reading": Reading(nominal=NOMINAL)}
    return Config(**{"adapt": adapt, "backbones": backbones, "fingerprints": prints, "classes": names, "shape": SHAPE} | given | changes)


def media(row):
    """A pattern of the class, the same in each weld of it, and noise of the weld; the second weld has no film, and each third a view too few."""
    kind, number = int(row.fault.rpartition("_")[2] or 0), int(row.record_id[1:])
    pattern, noise = np.random.default_rng((7, kind)), np.random.default_rng((8, number))

    def pixels(*shape):
        return (180 * pattern.random(shape) + 60 * noise.random(shape)).astype(np.uint8)

    film, photos = pixels(4, 16, 16), pixels(3, 32, 32, 3)
    views = [0, 2] if number % 3 == 0 else [0, 1, 2]
    steps = [*range(8), *range(14, 32)]  # a gap of the clock
    return {
        **({} if number == 1 else {"video": Medium(film, np.linspace(0, 0.9, 4))}),
        "image": Medium(photos[views], np.array(views) / 2, views),
        "audio": Medium((pattern.normal(-8, 2, (90, 16)) + noise.normal(0, 0.3, (90, 16))).astype(np.float32), np.arange(90) / 100),
        "series": Medium((pattern.normal(size=(32, 6)) + noise.normal(0, 0.2, (32, 6)))[steps], np.array(steps) / 32, steps),
    }


def welds(count=12, classes=3, first=0, **options):
    """The class of each is its number modulo the number of classes."""
    kinds = [number % classes for number in range(count)]
    faults = [f"fault_{kind:02d}" if kind else "" for kind in kinds]
    rows = [RecordRow(f"w{first + number}", {}, int(kind > 0), fault) for number, (kind, fault) in enumerate(zip(kinds, faults, strict=True))]
    bare = WeldingDataset([row._replace(fault="") for row in rows], lambda row: media(rows[int(row.record_id[1:]) - first]), SHAPE)
    return MediaSource(bare, torch.tensor(kinds), torch.tensor([int(kind > 0) for kind in kinds]), faults, **options)
