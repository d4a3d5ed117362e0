"""What clocks that begin 2 s apart cost a detector, and what finding the lags gives back: AUROC on held-out sessions of generated welds.

    python -m benchmarks.weld_aligner --welds 4 --epochs 15

Tokens lie on each recording's own clock. Sensors, 64 windows of sound and the film as 16 brightnesses a frame; no pretrained network. Prints one line a setting.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from stages import fusion
from stages.datasets import weld
from stages.datasets.media import read_grey_film
from stages.datasets.records import Record, Records, Tokens, packed
from stages.encoders.media import arc_sound, sensor_steps
from stages.metrics.ranking import auroc
from stages.training import Run

CLOCK_S = 11.0  # about the length of a recording
TESTED, VALIDATED = 4, 5  # of six neighbouring sessions: the fifth is for testing, the sixth for validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=72)
    parser.add_argument("--welds", type=int, default=4, help="of each session")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    print(f"{'offset':>7} {'align':>6} {'AUROC by seed':>20}", flush=True)
    for offset_s in (0.0, 2.0):
        given, session = _records(offset_s, asked.sessions, asked.welds)
        parts = [[row for row, at in enumerate(session) if _part(at) == part] for part in range(3)]
        train, val, test = (given.take(rows) for rows in parts)
        for align in (False, True):
            found = [_auroc(train, val, test, align, asked.epochs, seed) for seed in asked.seeds]
            print(f"{offset_s:>7g} {'on' if align else 'off':>6} {' '.join(f'{one:.3f}' for one in found):>20}", flush=True)


def _part(session: int) -> int:
    """0 train, 1 validation, 2 test."""
    return {VALIDATED: 1, TESTED: 2}.get(session % 6, 0)


def _auroc(train: Records, val: Records, test: Records, align: bool, epochs: int, seed: int) -> float:
    encoding = {"width": 64, "heads": 4, "sensor_layers": 1, "sensor_ffn": 128, "align": align, "clock_s": CLOCK_S}
    learning = {"epochs": epochs, "learning_rate": 1e-3}
    options = {"encoding": encoding, "learning": learning, "features": 128, "heads": 4, "ffn": 128}
    detector = fusion.build("deep.cross_attention", options, at=("benchmarks", "weld_aligner"))
    detector.fit(train, val, Run(seed=seed, quiet=True))
    return auroc(detector.score(test).double().numpy(), test.label.numpy())


def _records(offset_s: float, sessions: int, welds: int) -> tuple[Records, list[int]]:
    """The welds as tokens, and the number of each one's session among those of its class and all others, in the order of the listing."""
    sound, sensors = arc_sound.build(None, onset=False, windows=64), sensor_steps.build(None, onset=False, steps=160, relative=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options = {"sessions": sessions, "welds_per_session": welds, "film_size": 32, "photo_size": 48, "missing_rate": 0.0}
        made = weld.read_records(root, root, offset_s=offset_s, **options)
        found, groups = [], []
        for row in made.rows:
            tokens = {"series": sensors([root / row.paths["series"]])[0], "audio": sound([root / row.paths["audio"]])[0]}
            tokens["video"] = _film(root / row.paths["video"])
            found.append(Record(row.record_id, tokens, row.label, row.group, row.fault))
            groups.append((row.fault, row.group))
    order = {group: number for number, group in enumerate(sorted(set(groups)))}  # by class, so that every class is in every part
    return packed(found, {name: one.values.shape[1] for name, one in found[0].modalities.items()}), [order[group] for group in groups]


def _film(path: Path) -> Tokens:
    clip = read_grey_film(path, 4)
    time = torch.tensor(clip.time_s / max(clip.time_s[-1], 1e-9))
    return Tokens(torch.tensor(clip.frames).flatten(1).float(), time.float())


if __name__ == "__main__":
    main()
