"""What the probabilities of a fitted model's classes are worth: as they are, calibrated, with dropout on, and of all its seeds together.

Temperature and vector scaling are fitted on validation records, and so are the bounds of the sets of classes that hold the true one with a promised share;
everything that is told is measured on test. Where calibration and bounds are both fitted on the same records the promise is a little too good; dropout
and the seeds fit nothing and keep it. Records whose class was not learnt, and those that show the model nothing, are left out and counted.

P answers, n validation records, N test records, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import io
from stages.errors import UserError
from stages.metrics import tables
from stages.metrics.class_calibration import class_ece, class_nll, class_probabilities, class_temperature, vector_scaling
from stages.metrics.class_sets import fit_class_sets, judge_sets
from stages.metrics.selective import aurc, class_confidence, least_aurc
from stages.seed import derive
from stages.serving.record_model import RecordModel
from stages.serving.record_thresholds import stored

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stages.datasets.record_store import Subset
    from stages.datasets.records import Records
    from stages.fusion.detector import RecordDetector

FIGURES = ("accuracy", "ece", "nll", "aurc", "coverage", "set_size", "told_alone", "entropy", "entropy_if_wrong", "disagreement", "disagreement_if_wrong")
FLOOR = 1e-12  # of a probability whose logarithm is taken


class Part(NamedTuple):
    """The records of one split that can be judged."""

    records: Subset
    place: np.ndarray  # (N,) the column of each one's class
    left_out: int


class Way(NamedTuple):
    """Probabilities of validation and test records, (n, C) and (N, C), and by how much the answers that they are the mean of differ, (N,)."""

    val: np.ndarray
    test: np.ndarray
    disagreement: np.ndarray | None = None


def measure(model: RecordModel, passes: int = 20, coverage: float = 0.9) -> dict[str, Any]:
    """What `assay weld uncertainty` says; under "records" one row a test record. Raises UserError where the model tells no classes."""
    from stages.fusion import artefact
    from stages.fusion.classifying import tells

    detector = model.detector()
    if not tells(detector):
        raise UserError(f"{model.name} tells no classes, and this is about their probabilities. `assay weld threshold` works on its score")
    shown, seeds = io.read_json(io.require(model.place / "config.json")).get("shown"), stored(model.results)["seeds"]
    val, test = (_part(model, split, detector.classes, shown) for split in ("val", "test"))
    for split, part in (("validation", val), ("test", test)):
        if not len(part.place):
            raise UserError(f"{model.dataset} has no {split} record of a class that {model.name} learnt, so there is nothing to measure")
    every = [artefact.load(model.place.parent / f"seed{seed}") for seed in seeds]
    ways, refused = _ways(detector, every, val, test, passes, model.seed)
    rows = {name: _figures(way, val.place, test.place, coverage) for name, way in ways.items()}
    about = {"dataset": model.dataset, "model": model.name, "seed": model.seed, "seeds": seeds, "passes": passes, "asked_coverage": coverage}
    about |= {"classes": detector.classes, "val_records": len(val.place), "test_records": len(test.place)}
    about |= {"left_out": {"val": val.left_out, "test": test.left_out}, "temperature": _temperature(detector, val)}
    return about | {"ways": rows, "refused": refused, "records": _records(ways, test, detector.classes)}


def render(found: dict[str, Any]) -> str:
    """One line a way."""
    lines = [
        f"{found['model']} on {found['dataset']}, seed {found['seed']}: {found['test_records']} test records, fitted on {found['val_records']} of validation; "
        f"temperature {found['temperature']:.3g}"
    ]
    if out := {split: count for split, count in found["left_out"].items() if count}:
        lines.append("  left out, of a class that was not learnt or with nothing to see: " + ", ".join(f"{count} of {split}" for split, count in out.items()))
    wide = max(map(len, [*found["ways"], *found["refused"]]))
    lines.append(f"  {'':<{wide}}  accuracy    ECE    NLL   AURC  sets of {found['asked_coverage']:.0%}: coverage   size  one class  entropy right / wrong")
    for name, row in found["ways"].items():
        wrong = "n/a" if row["entropy_if_wrong"] is None else f"{row['entropy_if_wrong']:.2f}"
        lines.append(
            f"  {name:<{wide}}  {row['accuracy']:8.3f} {row['ece']:6.3f} {row['nll']:6.3f} {row['aurc']:6.3f}  {'':11}"
            f"{row['coverage']:10.3f} {row['set_size']:6.2f} {row['told_alone']:10.2f}  {row['entropy']:10.2f} / {wrong}"
        )
    lines += [f"  {name:<{wide}}  {reason}" for name, reason in found["refused"].items()]
    return "\n".join(lines)


def write(found: dict[str, Any], folder: Path) -> None:
    """uncertainty.json, and records.csv with a row for each test record."""
    io.write_json(folder / "uncertainty.json", {name: value for name, value in found.items() if name != "records"})
    io.write_text(folder / "records.csv", tables.rows_csv(found["records"], tuple(found["records"][0])))


def _part(model: RecordModel, split: str, classes: Sequence[str], shown: Sequence[str] | None) -> Part:
    from stages.datasets.record_sets import open_split
    from stages.fusion.detector import class_of
    from stages.fusion.scoring import shows

    records = open_split(model.dataset, split, model.project, shown)
    place = class_of(records, classes).numpy()
    kept = np.flatnonzero((place >= 0) & shows(records))
    return Part(records.kept(kept.tolist()), place[kept], records.samples - len(kept))


def _ways(
    detector: RecordDetector, every: Sequence[RecordDetector], val: Part, test: Part, passes: int, seed: int
) -> tuple[dict[str, Way], dict[str, str]]:
    """By name what could be asked, and why the rest could not."""
    from stages.fusion.deep.maths.uncertainty import ensemble, mc_dropout
    from stages.types import Refusal

    held_out, judged = (_logits(detector, part) for part in (val, test))
    temperature, scaling = class_temperature(held_out, val.place), vector_scaling(held_out, val.place)
    ways = {
        "as it is": Way(class_probabilities(held_out), class_probabilities(judged)),
        "temperature": Way(class_probabilities(held_out, temperature), class_probabilities(judged, temperature)),
        "vector scaling": Way(class_probabilities(scaling.logits(held_out)), class_probabilities(scaling.logits(judged))),
    }
    refused = {}
    asked: dict[str, Callable[[Records, int], Tensor]] = {
        f"dropout, {passes} passes": lambda batch, number: mc_dropout(detector, batch, passes, derive(seed, "passes", number)),
        f"ensemble of {len(every)} seed{'s' if len(every) > 1 else ''}": lambda batch, _: ensemble(every, batch),
    }
    for name, ask in asked.items():
        if name.startswith("ensemble") and len(every) < 2:
            refused[name] = "one seed is no ensemble; give the run several `seeds` in params.yaml"
            continue
        try:
            ways[name] = _asked(ask, val, test)
        except Refusal as reason:
            refused[name] = str(reason)
    return ways, refused


def _asked(ask: Callable[[Records, int], Tensor], val: Part, test: Part) -> Way:
    from stages.datasets.records import batches
    from stages.fusion.deep.maths.uncertainty import uncertainty

    def told(records: Subset, first: int) -> tuple[np.ndarray, np.ndarray]:
        found = [uncertainty(ask(batch, first + number)) for number, batch in enumerate(batches(records))]
        return np.concatenate([one.probability.numpy() for one in found]), np.concatenate([one.disagreement.numpy() for one in found])

    return Way(told(val.records, 0)[0], *told(test.records, 1_000_000))  # draws of their own


def _logits(detector: RecordDetector, part: Part) -> np.ndarray:
    from stages.fusion.classifying import classified

    return classified(detector, part.records)[1]


def _temperature(detector: RecordDetector, val: Part) -> float:
    return class_temperature(_logits(detector, val), val.place)


def _figures(way: Way, val_place: np.ndarray, place: np.ndarray, coverage: float) -> dict[str, float | None]:
    """FIGURES of the test records; a mean over no records is None."""
    wrong = way.test.argmax(1) != place
    sets = judge_sets(fit_class_sets(way.val, val_place, coverage).sets(way.test), place)
    spread = _entropy(way.test)
    values = (
        float(1 - wrong.mean()), class_ece(way.test, place), class_nll(np.log(np.maximum(way.test, FLOOR)), place),
        float(aurc(class_confidence(way.test), wrong.astype(float))), sets.coverage, sets.size, sets.alone, _mean(spread[~wrong]), _mean(spread[wrong]),
        None if way.disagreement is None else _mean(way.disagreement[~wrong]), None if way.disagreement is None else _mean(way.disagreement[wrong]),
    )  # fmt: skip
    return dict(zip(FIGURES, values, strict=True)) | {"least_aurc": least_aurc(wrong.astype(float))}


def _records(ways: dict[str, Way], test: Part, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for number, (name, place) in enumerate(zip(test.records.record_ids, test.place, strict=True)):
        row: dict[str, Any] = {"record_id": name, "class": classes[place]}
        for way, found in ways.items():
            likely = int(found.test[number].argmax())
            row |= {f"{way}: told": classes[likely], f"{way}: probability": float(found.test[number, likely])}
            row |= {f"{way}: entropy": float(_entropy(found.test[number]))}
            row |= {} if found.disagreement is None else {f"{way}: disagreement": float(found.disagreement[number])}
        rows.append(row)
    return rows


def _entropy(probability: np.ndarray) -> np.ndarray:
    """(..., C) to (...), nats."""
    from scipy.special import xlogy

    return -xlogy(probability, probability).sum(-1)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
