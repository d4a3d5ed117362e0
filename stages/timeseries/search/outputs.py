"""What a finished search is told by: two tables, the best model with its configuration, the histories, and what was learnt from it."""

from __future__ import annotations

import csv
import io as text
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.metrics.inputs import Undefined
from stages.timeseries.search.effects import agreement, main_effects
from stages.timeseries.search.grid import searched
from stages.timeseries.search.judging import fit, floor
from stages.timeseries.search.selection import QUALITY
from stages.timeseries.search.two_stage import Found, Line, judged, table

Rows = list[dict[str, Any]]


def write(found: Found, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """All files but pictures, into `out`; returns what best_config.json holds. about: more for metadata.json. Raises UserError where nothing was fitted."""
    write_csv(out / "quick_results.csv", quick_table(found))
    if found.selection:
        write_csv(out / "full_results.csv", full_table(found))
    histories = {stage: {str(line["number"]): line["history"] for line in judged(lines)} for stage, lines in _stages(found).items()}
    io.write_json(out / "histories.json", histories)
    config = write_best(found, out)
    io.write_json(out / "metadata.json", learnt(found) | about)
    return config


def write_best(found: Found, out: Path) -> dict[str, Any]:
    """The best combination fitted once more, as it was not kept; whether that gave the same figures is written beside it."""
    best = found.best
    model, line = fit(found.plan, found.final, best["number"])
    levels = {point.number: point.levels for point in found.plan.points}[best["number"]]
    config = {
        "detector": "masked_autoencoder",
        "options": line["options"],
        "regime": found.plan.regime,
        "seed": found.plan.seed,
        "grid": found.plan.grid,
        "number": best["number"],
        "levels": levels,
        "stage": found.final,
        "figures": best["figures"],
        "fitted_again_with_the_same_figures": line["figures"] == best["figures"],
    }
    io.write_model(out / "best_model.safetensors", model.state_dict(), config)
    io.write_tensors(out / "best_model.pt", model.state_dict())
    io.write_json(out / "best_config.json", config)
    return config


def quick_table(found: Found) -> Rows:
    return table(found.plan, judged(found.quick))


def full_table(found: Found) -> Rows:
    """Beside its own figures each row has those of the quick stage, what spoke for it, and what the longer training gained on the test block."""
    quick = {row["number"]: row for row in quick_table(found)}
    rows = []
    for row in table(found.plan, judged(found.full)):
        before = quick[row["number"]]
        earlier = {f"quick_{name}": before[name] for name in found.quick[0]["figures"] if name in before}
        gained = round(row["test_roc_auc"] - before["test_roc_auc"], 6)
        rows.append({**row, **earlier, "improvement": gained, "selection_criterion": found.selection.criterion[row["number"]]})
    return rows


def final_table(found: Found) -> Rows:
    """That of the stage which the best comes from."""
    return full_table(found) if found.final == "full" else quick_table(found)


def learnt(found: Found) -> dict[str, Any]:
    """What metadata.json says and the same search says again: what was asked, how much of it was done, the choice, the effects."""
    plan, selection, stages = found.plan, found.selection, _stages(found)
    return {
        "plan": plan.as_json(),
        "regime": plan.regime,
        "combinations": {
            stage: {"of": len(plan.points) if stage == "quick" else len(selection.criterion), "finished": len(lines)}
            for stage, lines in stages.items()
        },
        "refused": [
            {"stage": stage, "number": line["number"], "reason": line["refused"]}
            for stage, lines in stages.items() for line in lines if "refused" in line
        ],
        "windows": found.best["windows"],
        "without_a_model": {stage: floor(plan, stage) for stage in stages},
        "selection": None if selection is None else {
            "rule": selection.rule, "by": QUALITY, "keep": list(found.limits.keep), "per_level": selection.per_level,
            "chosen": len(selection.criterion), "trimmed": selection.trimmed,
        },
        "kendall_tau": _agreement(found),
        "main_effects": {"of": QUALITY, "stage": "quick", **_effects(found)},
        "best": {"stage": found.final, "number": found.best["number"], "files": ["best_model.safetensors", "best_model.pt", "best_config.json"]},
    }  # fmt: skip


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Columns in the order of the first row; no rows, no columns."""
    file = text.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    io.write_text(path, file.getvalue())


def _agreement(found: Found) -> dict[str, Any]:
    rows = full_table(found) if found.selection else []
    try:
        return agreement([row[f"quick_{QUALITY}"] for row in rows], [row[QUALITY] for row in rows])._asdict() | {"combinations": len(rows)}
    except Undefined as reason:
        return {"value": None, "reason": str(reason)}


def _effects(found: Found) -> dict[str, Any]:
    try:
        return {"factors": main_effects(quick_table(found), searched(found.plan.grid, found.plan.regime), QUALITY, found.plan.seed)}
    except Undefined as reason:
        return {"factors": None, "reason": str(reason)}


def _stages(found: Found) -> dict[str, list[Line]]:
    return {"quick": found.quick} | ({"full": found.full} if found.selection else {})
