"""One fitted model on one split: AUROC, accuracy and macro F1 of its classes and of its nearest neighbours, and who is taken for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stages import io
from stages.datasets import setting_range
from stages.datasets.record_sets import SPLITS, open_split
from stages.errors import Missing, UserError
from stages.fusion import artefact, one_off
from stages.fusion.classifying import UNNAMED, classified, names_of, tells
from stages.fusion.detector import class_of
from stages.fusion.scoring import nothing_known, scores, shows
from stages.metrics.classes import accuracy, by_class, class_counts, macro_f1, nearest_class
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import auroc
from stages.training import Run

if TYPE_CHECKING:
    from pathlib import Path

    from stages.datasets.record_store import Subset
    from stages.fusion.detector import RecordDetector
    from stages.params import Params


def evaluate(
    params: Params, name: str, row: str, split: str, neighbours: int, by_distance: bool, changed: bool, seed: int | None
) -> dict[str, Any]:
    """What `assay weld evaluate` says. name: of the run. changed: the model that a hand-made training left. Raises Missing, UserError."""
    if split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    task, run = params.record_task, params.record_task.runs[name]
    entry = task.rows(run.model)[row]
    seed = task.seeds(run)[0] if seed is None else seed
    place = artefact.folder(run.dataset, run.model, row, seed)
    place = one_off.FOLDER / place if changed else place
    detector = _loaded(place, run.dataset, row, changed)
    train, val, judged = (open_split(run.dataset, part, modalities=entry.modalities) for part in ("train", "val", split))
    device = Run(seed=0, device=params.compute.device).device
    detector.to(device)
    known = np.flatnonzero(judged.label.numpy() >= 0).tolist()
    judged = judged.kept(known)
    there, score = shows(val), scores(detector, val, device)
    found = scores(detector, judged, device)
    score = np.where(shows(judged), found, nothing_known(detector, score[there]))
    about = {"model": row, "folder": place.as_posix(), "split": split, "records": judged.samples, "auroc": _auroc(score, judged)}
    about |= {"outside": _outside(place, run.dataset, judged)}
    return about | (_classes(detector, train, judged, neighbours, by_distance, device) if tells(detector) else {})


def _loaded(place: Path, dataset: str, row: str, changed: bool) -> RecordDetector:
    if reason := artefact.refusal(place):
        raise UserError(f"{row} could not be had: {reason}")
    if not (place / "config.json").is_file():
        raise Missing(
            f"{place.as_posix()} holds no fitted model. Run `assay weld train --dataset {dataset} --model {row}` first"
            + (" with the settings that you want" if changed else "")
        )
    return artefact.load(place)


def _outside(place: Path, dataset: str, judged: Subset) -> list[dict[str, Any]] | None:
    """Settings of the records that the model has not seen, counted; None where it was fitted before ranges were kept, or there are no facts."""
    known, facts = io.read_json(place / "config.json").get("settings"), setting_range.facts_of(dataset)
    return setting_range.counted(known, [facts.get(name, {}) for name in judged.record_ids]) if known and facts else None


def _auroc(score: np.ndarray, judged: Subset) -> float | None:
    try:
        return auroc(score, judged.label.numpy())
    except Undefined:
        return None


def _classes(detector: RecordDetector, train: Subset, judged: Subset, neighbours: int, by_distance: bool, device: Any) -> dict[str, Any]:
    """Records that show the detector nothing are left out and counted."""
    bank_class = class_of(train, detector.classes).numpy()
    kept = np.flatnonzero(bank_class >= 0)
    stored, _, bank = classified(detector, train.kept(kept.tolist()), device)
    there, logits, features = classified(detector, judged, device)
    own = np.array(names_of(judged), dtype=object)[there].tolist()
    names = [*detector.classes, *sorted(set(own) - set(detector.classes) - {UNNAMED}), *([UNNAMED] if UNNAMED in own else [])]
    true = [names.index(one) for one in own]
    weights = "distance" if by_distance else "uniform"
    near = nearest_class(bank, bank_class[kept][stored], features, len(detector.classes), neighbours, weights)
    count = class_counts(true, logits.argmax(1), len(names))
    by_neighbours = class_counts(true, near, len(names))
    return {
        "shown_nothing": int((~there).sum()),
        "bank": len(bank),
        "neighbours": f"{neighbours}, {'by distance' if by_distance else 'one vote each'}",
        **{name: float(value) for name, value in (("accuracy", accuracy(count)), ("macro_f1", macro_f1(count)))},
        **{name: float(value) for name, value in (("knn_accuracy", accuracy(by_neighbours)), ("knn_macro_f1", macro_f1(by_neighbours)))},
        "classes": names,
        "f1": [None if np.isnan(one) else float(one) for one in by_class(count).f1],
        "confusion": count.astype(int).tolist(),
        "knn_confusion": by_neighbours.astype(int).tolist(),
    }


def render(found: dict[str, Any]) -> str:
    area = "n/a" if found["auroc"] is None else f"{found['auroc']:.3f}"
    lines = [f"{found['folder']}: {found['records']} records of {found['split']}", f"  AUROC {area}"]
    lines += [f"  outside what it has seen: {line}" for line in setting_range.warnings(found["outside"] or [])]
    if "accuracy" not in found:
        return "\n".join([*lines, "  it tells no classes"])
    lines += [
        f"  its own classes: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f}",
        f"  nearest of {found['bank']} training records ({found['neighbours']}): "
        f"accuracy {found['knn_accuracy']:.3f}, macro F1 {found['knn_macro_f1']:.3f}",
    ]
    lines += [f"  {found['shown_nothing']} records show it nothing and are left out of the classes"] if found["shown_nothing"] else []
    return "\n".join([*lines, "", *_matrix(found)])


def _matrix(found: dict[str, Any]) -> list[str]:
    """Rows are what a record is, columns what it is said to be, numbered as the rows are."""
    wide = max(map(len, found["classes"]))
    cell = max(3, *(len(str(count)) for row in found["confusion"] for count in row))
    head = " " * (wide + 5) + "".join(f"{place + 1:>{cell + 1}}" for place in range(len(found["classes"]))) + "     F1"
    body = [
        f"{place + 1:>3}  {name:<{wide}}"
        + "".join(f"{count or '.':>{cell + 1}}" for count in row)
        + ("" if score is None else f"  {score:5.2f}")
        for place, (name, row, score) in enumerate(zip(found["classes"], found["confusion"], found["f1"], strict=True))
    ]
    return ["confusion: a row is what a record is, a column what it is said to be", head, *body]
