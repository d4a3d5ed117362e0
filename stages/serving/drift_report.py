"""What `assay drift` says: each statistic of the records beside what it was in training and what chance gives, and settings that were never seen.

It looks at what records show and at what models make of it, never at labels: it cannot say that verdicts have become wrong.
"""

from __future__ import annotations

import csv
import io as text_io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import errors, io
from stages.datasets import setting_range
from stages.metrics.drift import LEVEL, MOVED, PERMUTATIONS, RULE, STEADY, WATCH, Shift, compare, fewest_p
from stages.serving.drift_sides import Side, about_of, of_new, of_split

if TYPE_CHECKING:
    from stages.params import Params
    from stages.serving.drift_statistics import Statistic
    from stages.serving.record_model import RecordModel

ORDER = {MOVED: 0, WATCH: 1, STEADY: 2}
SHOWN = 12
ALONE = "the new records name no session, so each counts as one by itself: what records of one session share will look like drift. Say their group"
FEW = 5  # groups of a side, below which little can be told
COLUMNS = (
    "statistic",
    "of",
    "verdict",
    "was",
    "is",
    "psi",
    "psi_by_chance",
    "ks",
    "ks_p_naive",
    "p",
    "p_adjusted",
    "excess",
    "records_was",
    "records_is",
)


def measure(
    settings: Params,
    dataset: str,
    against: str | None,
    new: Path | None,
    model: str | None,
    normal_alone: bool = False,
    permutations: int = PERMUTATIONS,
) -> dict[str, Any]:
    """All that the command says, as JSON. Raises UserError where it is not clear what is compared, or there is nothing to compare."""
    from stages.serving.drift_statistics import statistics
    from stages.serving.record_model import choose

    settings.record_task.entry("datasets", dataset)
    if (against is None) == (new is None):
        raise errors.UserError("say what is held against the training records: either --against test (or val), or --new FOLDER")
    if against == "train":
        raise errors.UserError("--against train would hold the training records against themselves. Say test or val")
    chosen = choose(settings, dataset=dataset, model=model) if model is not None else None
    reference = of_split(dataset, "train", normal_alone)
    other = of_split(dataset, against, normal_alone) if against is not None else of_new(settings, dataset, Path(new or ""))
    if _alone(other) and not _alone(reference):
        other = other._replace(notes=[*other.notes, ALONE])
    named = setting_range.setting_names(dataset)
    rows = _compared(statistics(reference, other, about_of(dataset), named), reference.group, other.group, permutations)
    scored = _scores(chosen, other, normal_alone, permutations) if chosen is not None else []
    rows = sorted([*rows, *scored], key=_first)
    return {
        "dataset": dataset,
        "reference": _described(reference),
        "new": _described(other),
        "verdict": min((row["verdict"] for row in rows), key=ORDER.__getitem__, default=STEADY),
        "counts": {name: sum(row["verdict"] == name for row in rows) for name in ORDER},
        "rule": RULE,
        "permutations": permutations,
        "least_p": max(fewest_p(*_sides(reference.group, other.group)), 1 / (permutations + 1)),
        "normal_alone": normal_alone,
        "model": None if chosen is None else chosen.identity(),
        "settings": _settings(dataset, reference, other, chosen),
        "statistics": rows,
    }


def _alone(side: Side) -> bool:
    """Whether no two records are of one group; a single record says nothing about that."""
    return side.records.samples > 1 and len(set(side.group)) == side.records.samples


def _described(side: Side) -> dict[str, Any]:
    return {
        "from": side.said,
        "records": side.records.samples,
        "groups": len(set(side.group)),
        "left_out": side.left_out,
        "notes": list(side.notes),
    }


def _sides(reference: list[str], new: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(reference) + len(new)) >= len(reference), np.array([*reference, *new])


def _compared(found: list[Statistic], reference: list[str], new: list[str], permutations: int) -> list[dict[str, Any]]:
    is_new, group = _sides(reference, new)
    shifts = compare([one.values for one in found], is_new, group, permutations)
    return [_row(one, shift, is_new) for one, shift in zip(found, shifts, strict=True)]


def _row(one: Statistic, shift: Shift, is_new: np.ndarray) -> dict[str, Any]:
    was, now = (values[~np.isnan(values)] for values in (one.values[~is_new], one.values[is_new]))
    share = set(np.concatenate([was, now]).tolist()) <= {0.0, 1.0}
    typical = [float(np.mean(values) if share else np.median(values)) for values in (was, now)]
    numbers = {name: float(value) for name, value in shift._asdict().items() if name != "verdict"}
    told = dict(zip(("was", "is", "records_was", "records_is"), (*typical, len(was), len(now)), strict=True))
    return {"statistic": one.name, "of": one.of, "verdict": shift.verdict, "share": share, **told, **numbers}


def _first(row: dict[str, Any]) -> tuple[Any, ...]:
    return ORDER[row["verdict"]], row["p_adjusted"], -row["excess"], row["statistic"]


def _scores(model: RecordModel, new: Side, normal_alone: bool, permutations: int) -> list[dict[str, Any]]:
    """The model's scores beside those of validation, which it did not learn from; a family of its own, as the reference is another."""
    from stages.fusion.scoring import scores
    from stages.serving.drift_statistics import Statistic

    detector = model.detector()
    held = of_split(model.dataset, "val", normal_alone, model.project)
    values = [scores(detector, side.records.only(list(detector.widths)), "cpu") if _fits(detector, side) else None for side in (held, new)]
    if values[0] is None or values[1] is None:
        raise errors.UserError(
            f"{model.name} sees {', '.join(detector.widths)}, which are controls; its scores are not compared. Name another --model"
        )
    return _compared([Statistic(f"score of {model.name}", "scores", np.concatenate(values))], held.group, new.group, permutations)


def _fits(detector: Any, side: Side) -> bool:
    return bool(set(detector.widths) & {name for name, one in side.records.tokens.items() if len(one.values)})


def _settings(dataset: str, reference: Side, new: Side, model: RecordModel | None) -> dict[str, Any]:
    """Which settings the new records have that the model, or without one the training records, did not see."""
    known = setting_range.seen(dataset, reference.records.record_id) if model is None else model.settings()
    told = [one for one in new.facts if one]
    return {"seen": known, "records": len(told), "outside": setting_range.counted(known, told) if known else []}


def write(found: dict[str, Any], folder: Path) -> None:
    """drift.json and drift.csv."""
    page = text_io.StringIO()
    table = csv.DictWriter(page, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(found["statistics"])
    io.write_json(folder / "drift.json", found)
    io.write_text(folder / "drift.csv", page.getvalue())


def render(found: dict[str, Any], everything: bool = False) -> str:
    sides = [f"{one['records']} records of {one['from']} ({one['groups']} groups)" for one in (found["new"], found["reference"])]
    count, rows = found["counts"], found["statistics"]
    lines = [f"{found['dataset']}: {sides[0]} against {sides[1]}{', normal ones alone' if found['normal_alone'] else ''}"]
    lines += [f"  {found['new']['left_out']} files could not be read and are left out"] if found["new"]["left_out"] else []
    lines += [f"  {note}" for note in found["new"]["notes"]]
    lines.append(f"{found['verdict']}: of {len(rows)} statistics {', '.join(f'{number} {name}' for name, number in count.items())}")
    shown = rows if everything else rows[: max(SHOWN, min(count[MOVED], 3 * SHOWN))]
    lines += ["", *_table(shown)]
    lines += [f"  and {len(rows) - len(shown)} more (--all)"] if len(shown) < len(rows) else []
    lines += ["", f"rule: {found['rule']}"]
    if found["least_p"] > LEVEL:
        lines.append(f"with so few groups no p can be below {found['least_p']:.2g}: nothing can be called moved. Gather more sessions")
    elif found["new"]["groups"] < FEW:
        lines.append(f"{found['new']['groups']} new groups are few: only large shifts can be told from one session's own")
    return "\n".join([*lines, *_told_settings(found["settings"], found["model"])])


def _told_settings(found: dict[str, Any], model: dict[str, Any] | None) -> list[str]:
    who = "the training records" if model is None else model["model_id"]
    if not found["records"]:
        return []
    if found["seen"] is None:
        return [f"settings: {who} was fitted before ranges were kept, so what it has seen is not known. Train it again"]
    if not found["seen"]:
        return []
    outside = [f"outside what was seen: {line}" for line in setting_range.warnings(found["outside"])]
    return outside or [f"settings: {found['records']} records lie within what {who} saw of {', '.join(found['seen'])}"]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    wide = max((len(f"{row['statistic']}") for row in rows), default=9)
    head = f"  {'':<6}  {'statistic':<{wide}}  {'was':>9}  {'is':>9}  {'PSI':>6}  {'by chance':>9}  {'KS':>5}  {'p adjusted':>10}"
    body = [
        f"  {row['verdict']:<6}  {row['statistic']:<{wide}}  {_number(row['was'], row['share']):>9}  {_number(row['is'], row['share']):>9}"
        f"  {row['psi']:>6.2f}  {row['psi_by_chance']:>9.2f}  {row['ks']:>5.2f}  {row['p_adjusted']:>10.3f}"
        for row in rows
    ]
    return [head, *body]


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.0f} %" if share else f"{value:.4g}"
