"""Verdict, leaderboard, plots and pictures on one page.

Reads every metrics/<dataset>, writes metrics/report/index.html: one file, no request, works from a disk. Beside it lie the curves that
`dvc plots` draws, the page it draws them on, with Vega in it, so that it needs no network either, and `verdicts.json`: by data set the model
that the page recommends, which is the one that `assay predict` asks. Where records have kinds of fault, `tables/` has those over all models, as CSV and
as Markdown.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

from stages import errors, io
from stages.params import load
from stages.serving.leaderboard import cell, leaderboard, results
from stages.serving.verdict import VERDICTS

FOLDER = Path("metrics/report")
CURVES = {"ROC": ("false_alarm_rate", "recall"), "PR": ("recall", "precision")}


def main() -> int:
    from stages.plots import page
    from stages.serving import record_summary, series_summary, summary

    params = load()
    found = results(params)
    sections, of_task = [], {"series": series_summary, "records": record_summary}
    for name, rows in leaderboard(params).items():
        own = {found[row.folder]["model"]: found[row.folder] for row in rows}
        sections.append(of_task.get(rows[0].task, summary).section(params, name, rows, own))
    io.write_text(FOLDER / "index.html", page.render(params.report.title, sections, _made(), cell))
    for file, text in (item for one in sections for item in (one.get("classes") or {}).get("files", {}).items()):
        io.write_text(FOLDER / "tables" / file, text)
    io.write_json(VERDICTS, {one["name"]: one["recommended"] for one in sections})
    io.write_text(FOLDER / "plots_template.html", page.dvc_template())
    for curve in CURVES:
        io.write_text(FOLDER / f"{curve.lower()}.csv", _curve_table(curve, sections))
    print(f"report: {FOLDER / 'index.html'}")
    return errors.OK


def _curve_table(curve: str, sections: Sequence[dict[str, Any]]) -> str:
    """All curves of one kind as one long table, for `dvc plots show` and `dvc plots diff`."""
    file = StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["category", "model", "place", *CURVES[curve]])
    for section in sections:
        for category, points in section["curves"].items():
            rows = [point for point in points if point["curve"] == curve]
            table.writerows([f"{section['name']} {category}", point["model"], point["order"], point["x"], point["y"]] for point in rows)
    return file.getvalue()


def _made() -> dict[str, Any]:
    """When, from which commit and on which machine: the page is no part of what must be identical byte for byte."""
    machines = [io.read_json(path)["machine"] for path in sorted(Path("metrics/bench").glob("*.json"))]
    return {"date": date.today().isoformat(), "commit": _commit(), "machine": machines[0] if machines else {}}


def _commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(errors.guarded(main))
