"""Verdict, leaderboard, plots and pictures on one page.

Reads every metrics/<dataset>, writes metrics/report/index.html: one file, no request, works from a disk.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from stages import errors, io
from stages.params import load
from stages.serving.leaderboard import cell, leaderboard, results

PAGE = Path("metrics/report/index.html")


def main() -> int:
    from stages.plots import page
    from stages.serving.summary import section

    params = load()
    found = results(params)
    sections = [
        section(params, dataset, rows, {result["model"]: result for result in found.values() if result["dataset"] == dataset})
        for dataset, rows in leaderboard(params).items()
    ]
    io.write_text(PAGE, page.render(params.report.title, sections, _made(), cell))
    print(f"report: {PAGE}")
    return errors.OK


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
