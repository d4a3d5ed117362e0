"""docs/weld_curves.svg: how the networks of one data set of records learnt, training beside validation, as the last run left it.

    python -m benchmarks.weld_curves                     the data set `weld`, the networks that are compared
    python -m benchmarks.weld_curves --models mid-fusion late-fusion

Reads the learning.csv that evaluate_records wrote of each model (first seed) and draws loss and accuracy against the epoch. Sentences on over-fitting are
printed, and stand in the description of the picture. Exit code 1 where no model has such a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stages import io
from stages.params import load
from stages.plots import class_charts
from stages.serving.class_summary import MEASURED, NO_RISE, SHOWN, trainings
from stages.serving.leaderboard import leaderboard

OUT = Path("docs/weld_curves.svg")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="weld")
    parser.add_argument("--models", nargs="+", default=[*SHOWN, "gated-fusion", "late-fusion"], help="The first five networks are drawn.")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    rows = [row for row in leaderboard(load()).get(given.dataset, []) if row.model in given.models and row.refused is None]
    rows.sort(key=lambda row: given.models.index(row.model))
    learnt = [one for row in rows for one in trainings(row)][: class_charts.MOST_MODELS]
    if not learnt:
        print(f"no learning.csv of {', '.join(given.models)} in metrics/{given.dataset}. Run evaluate_records for them", file=sys.stderr)
        return 1
    said = [text for one in learnt if (text := one.overfitted)] or [NO_RISE]
    panels = {
        what: [
            {"model": one.model, "epoch": epoch, "train": one.figures[train][place], "val": one.figures[val][place], "kept": place == one.best}
            for one in learnt
            for place, epoch in enumerate(one.epoch)
        ]
        for what, (train, val) in MEASURED.items()
    }
    io.write_bytes(given.out, class_charts.picture(panels, " ".join(said)))
    print("\n".join([*said, f"{given.out}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
