"""One cell of the study: one row fitted on one fold with one seed, and what it says of the fold's records, as a small JSON file.

A cell goes through the functions that train_records and evaluate_records go through, on lists of records of its own. Its file is named by a hash of all
that it depends on (detector, options, modalities, lists of records, seed, data, code), so that a finished cell is never computed twice, an outdated one
never read, and two rows that are the same thing share one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import stages
from stages import io
from stages.datasets.weld_protocols import Fold
from stages.serving.weld_rows import StudyRow

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stages.datasets.record_store import Subset
    from stages.fusion.detector import RecordDetector

FORM = 1  # of the files; another form is another cell
GROUND = (
    *(f"fusion/{name}.py" for name in ("detector", "scoring", "classifying")),
    *("metrics/classes.py", "datasets/records.py", "datasets/record_store.py", "serving/weld_cell.py", "training.py", "seed.py"),
)
DIGITS = 7  # of a score that is written down: what float32 holds
LATENCY = (2, 20, 0.1)  # warm-up, repeats, seconds


class Cell(NamedTuple):
    dataset: str
    row: StudyRow
    fold: Fold
    seed: int
    key: str
    project: Path = Path()  # where data/ and features/ lie

    @property
    def name(self) -> str:
        return f"{self.row.name}/{self.fold.name}/seed{self.seed}/{self.key[:12]}"


def key_of(row: StudyRow, fold: Fold, seed: int, data: str, code: str) -> str:
    """row: with its `settled` options. data: the fingerprint of the data set. code: of `code_hash`."""
    return io.content_hash([FORM, row.detector, row.options, row.shown, fold[1:], seed, data, code])


def code_hash(row: StudyRow) -> str:
    """Of the sources that a row is made of."""
    root = Path(stages.__file__).parent
    named = [path for place in row.code for path in (root.parent / place, *(root.parent / place).rglob("*.py"))]
    files = {path for path in (*named, *(root / name for name in GROUND)) if path.is_file()}
    return io.content_hash({path.relative_to(root).as_posix(): io.file_hash(path) for path in files})


def file_of(folder: Path, key: str) -> Path:
    return folder / f"{key[:24]}.json"


def compute(cell: Cell, device: str, folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Fit, score, and write the cell's file; a Refusal is written as well. rows: of the sample table, by record id."""
    from stages.types import Refusal

    about = {"row": cell.row.name, "detector": cell.row.detector, "fold": cell.fold.name, "seed": cell.seed}
    try:
        found = _fitted(cell, device, rows)
    except Refusal as reason:
        found = {"refused": str(reason)}
    io.write_json(file_of(folder, cell.key), about | found)


def _fitted(cell: Cell, device: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    from stages import fusion
    from stages.fusion.scoring import shows
    from stages.training import Run

    row = cell.row
    train, val, test = (_subset(cell, ids, rows) for ids in cell.fold[1:])
    session = Run(seed=cell.seed, device=device, label=cell.name, quiet=True, dataset=cell.dataset)
    detector = fusion.build(row.detector, row.options, at=("records", "models", row.name)).to(session.device)
    detector.fit(*(part.kept(shows(part).nonzero()[0].tolist()) for part in (train, val)), session)
    return _told(detector, (train, val, test), session.device) | {"steps": _steps(session.history)}


def _subset(cell: Cell, ids: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> Subset:
    from stages.datasets.record_sets import subset_of

    return subset_of([{"fault": "", **rows[one]} for one in ids], cell.dataset, cell.project, cell.row.shown)


def _told(detector: RecordDetector, parts: tuple[Subset, Subset, Subset], device: torch.device) -> dict[str, Any]:
    import numpy as np

    from stages.fusion.classifying import tells
    from stages.fusion.scoring import nothing_known, scores, shows

    train, val, test = parts
    there = {"val": shows(val), "test": shows(test)}
    score = {"val": scores(detector, val, device), "test": scores(detector, test, device)}
    prior = nothing_known(detector, score["val"][there["val"]])
    found: dict[str, Any] = {name: _rounded(np.where(there[name], one, prior)) for name, one in score.items()}
    found |= {"supervised": detector.supervised, "blind": detector.blind, "modalities": list(detector.widths)}
    found |= {"parameters": sum(one.numel() for one in detector.parameters())}
    if tells(detector):
        found |= _classes(detector, train, test, device)
    return found | {"subsets": _subsets(detector, test, prior, device), "ms": _latency(detector, test, there["test"], device)}


def _classes(detector: RecordDetector, train: Subset, test: Subset, device: torch.device) -> dict[str, Any]:
    """Two guesses of each test record's class: that of its logits and that of the nearest training records."""
    from stages.fusion.classifying import told

    found = told([detector], train, {"test": test}, device)["test"]
    guesses = {"predicted": found.logits[0].argmax(1), "neighbours": found.neighbour[0]}
    return {"classes": detector.classes} | {name: [found.names[place] for place in guess.tolist()] for name, guess in guesses.items()}


def _subsets(detector: RecordDetector, test: Subset, prior: float, device: torch.device) -> dict[str, list[float]]:
    """Scores of the test records with only some modalities left, by their names; nothing of a detector of one or of very many modalities."""
    from stages.fusion.scoring import ALL_SUBSETS, subset_scores, subsets

    names = list(detector.widths)
    if not 2 <= len(names) <= ALL_SUBSETS:
        return {}
    found = subset_scores(detector, test, subsets(len(names)), prior, device)
    return {"+".join(name for member, name in enumerate(names) if mask >> member & 1): _rounded(one) for mask, one in found.items()}


def _latency(detector: RecordDetector, test: Subset, there: np.ndarray, device: torch.device) -> float | None:
    """Milliseconds for one record from its stored tokens: the median of a few calls beside whatever else runs."""
    import torch

    from stages.metrics.latency import measure

    if not there.any():
        return None
    one = test.take([int(there.argmax())]).to(device)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    return round(measure(lambda: detector.score(one), *LATENCY, synchronise).p50_ms, 3)


def _steps(history: Sequence[Mapping[str, Any]]) -> int | None:
    return max((row["step"] for row in history if "step" in row), default=None)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
