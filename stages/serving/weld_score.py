"""`assay weld score`: a model that `assay weld finetune` wrote, on welds that it has not seen; and where it looked in their photographs and films."""

from __future__ import annotations

import csv
import io as text_io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import io
from stages.datasets.intel_welding import read_layout
from stages.datasets.records import NORMAL
from stages.errors import UserError
from stages.fusion import finetuned, finetuning
from stages.fusion.finetuned import Config
from stages.fusion.raw_media import extracted
from stages.metrics.verdicts import ACCEPT, REJECT
from stages.serving.weld_raw import shown, source_of, split_of

if TYPE_CHECKING:
    from stages.datasets.record_adapters import RecordRow
    from stages.fusion.deep.maths.sota_model import QuadModalSOTAModel
    from stages.fusion.raw_media import MediaSource

SPLITS = ("train", "val", "test")
COLUMNS = ("record_id", "weld", "score", "threshold", "verdict", "told", "probability", "absent", "class")


class Welds(NamedTuple):
    rows: list[RecordRow]
    root: Path
    bare: list[RecordRow]  # none of their media is there


class Scored(NamedTuple):
    model: QuadModalSOTAModel
    config: Config
    source: MediaSource
    rows: list[dict[str, Any]]  # a row a weld, with `COLUMNS`; those that show nothing last
    files: list[RecordRow]


def score(place: Path, folder: Path | None, split: str | None, backbones: Path, device: str) -> Scored:
    """place: of one variant. folder: in the layout of the release; else a list of the data set that was learnt from. Raises UserError."""
    if (folder is None) == (split is None):
        raise UserError("give a folder in the layout of the release, or --split train, val or test of the data set that was learnt from")
    from stages.training import Run

    model, config = finetuned.load(place, backbones)
    welds = _of_folder(folder) if folder is not None else _of_split(config, split or "")
    if not welds.rows:
        raise UserError(f"no weld has any of film, photographs, sound and sensors below {welds.root}. Check it with `assay weld check {welds.root}`")
    where = Run(seed=0, device=device).device
    model.to(where)
    source = source_of(welds.rows, welds.root, config)
    found, logits = finetuning.answers(model, tokens := extracted(model, source, where))
    present = tokens.present
    rows = []
    for at, row in enumerate(welds.rows):
        likely = logits[at].softmax(0)
        absent = [name for name, there in zip(tokens.tokens, present[at].tolist(), strict=True) if not there]
        rows.append(_row(row, config, float(found[at]), config.classes[int(likely.argmax())], float(likely.max()), absent))
    rows += [_row(row, config, None, None, None, list(tokens.tokens)) for row in welds.bare]
    return Scored(model, config, source, rows, welds.rows)


def _of_folder(folder: Path) -> Welds:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Expected one in the layout of the release: manifest.csv and its sessions")
    reading = read_layout(folder, open_media=False, hashed=False)
    there = shown(reading.rows, reading.root)
    kept = {row.record_id for row in there}
    return Welds(there, reading.root, [row for row in reading.rows if row.record_id not in kept])


def _of_split(config: Config, split: str) -> Welds:
    if split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    found = split_of(config.dataset, split)
    return Welds(found.rows, found.root, [])


def _row(row: RecordRow, config: Config, value: float | None, told: str | None, probability: float | None, absent: list[str]) -> dict[str, Any]:
    verdict = "no media" if value is None or config.threshold is None else REJECT if value > config.threshold else ACCEPT
    weld = Path(next(iter(row.paths.values()), "")).parent.as_posix()
    kind = (row.fault or "faulty") if row.label == 1 else NORMAL if row.label == 0 else ""
    cells = (row.record_id, weld, value, config.threshold, verdict, told, probability, " ".join(absent), kind)
    return dict(zip(COLUMNS, cells, strict=True))


def write(found: Scored, path: Path) -> None:
    """CSV, or JSON where the name ends so."""
    if path.suffix == ".json":
        io.write_json(path, found.rows)
        return
    text = text_io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows)
    io.write_text(path, text.getvalue())


def render(found: Scored, path: Path) -> str:
    counts = {word: sum(row["verdict"] == word for row in found.rows) for word in (ACCEPT, REJECT, "no media")}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    worst = sorted((row for row in found.rows if row["score"] is not None), key=lambda row: -row["score"])[:5]
    lines = [f"{len(found.rows)} welds by {found.config.adapt} (threshold {found.config.threshold:.3f}): {said}"]
    lines += [f"  {row['score']:>8.3f}  {row['verdict']:<7} {row['told']:<30} {row['weld']}" for row in worst]
    return "\n".join([*lines, f"written to {path.as_posix()}"])
