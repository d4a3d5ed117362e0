"""How often `assay drift` alarms where nothing can have moved: a third of the training sessions against the rest of them, drawn anew each time.

    python -m benchmarks.drift_level weld 60

Run in a project that has the features. Beside it what counting records instead of sessions gives, and the usual reading of the population stability index.
"""

from __future__ import annotations

import sys

import numpy as np

from stages.datasets.setting_range import setting_names
from stages.metrics import drift
from stages.serving.drift_sides import Side, about_of, of_split
from stages.serving.drift_statistics import statistics

SHARE, PERMUTATIONS = 0.31, 199


def part(side: Side, groups: set[str]) -> Side:
    at = [place for place, name in enumerate(side.group) if name in groups]
    levels = {name: values[at] for name, values in side.levels.items()}
    return side._replace(records=side.records.take(at), group=[side.group[one] for one in at], facts=[side.facts[one] for one in at], levels=levels)


def main(dataset: str, rounds: str = "60") -> None:
    side, about, named = of_split(dataset, "train"), about_of(dataset), setting_names(dataset)
    names, alarms, above = sorted(set(side.group)), np.zeros(3, int), list[float]()
    for seed in range(int(rounds)):
        new = set(np.random.default_rng(seed).permutation(names)[: max(1, round(len(names) * SHARE))].tolist())
        sides = part(side, set(names) - new), part(side, new)
        group = np.array([*sides[0].group, *sides[1].group])
        found = drift.compare([one.values for one in statistics(*sides, about, named)], np.isin(group, list(new)), group, PERMUTATIONS, seed=seed)
        naive = len(found) * min(one.ks_p_naive for one in found) <= drift.LEVEL  # the least that Holm adjusts to
        alarms += [any(one.verdict == drift.MOVED for one in found), naive, any(one.psi >= drift.LARGE for one in found)]
        above += [one.psi > one.psi_by_chance for one in found]
    print(f"{dataset}: {rounds} rounds of {len(names)} sessions; moved {alarms[0]}, by record with Holm {alarms[1]}, any PSI of {drift.LARGE:g} {alarms[2]}; "
          f"{np.mean(above):.1%} of statistics above their bound by chance")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
