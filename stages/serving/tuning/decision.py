"""Whether the best trial is better than what is in use, or only the luckiest of many.

The difference in AUROC is bootstrapped over val images (a copy goes with its image), all trials seen in the same resamples. The best of N
differences is too large on average, so the interval is widened until all N hold at once with 95 %: the bootstrap of the largest studentised
deviation. White, "A Reality Check for Data Snooping", Econometrica 2000; studentised as in Romano & Wolf, Econometrica 2005.

It speaks of other images of the same kind, with the same sorts of defects and one training seed. Of real defects it says nothing where the
defects are planted. From a handful of images a bootstrap makes intervals that are too short, so below FEWEST nothing is called better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.metrics.bootstrap import Interval, paired_draws
from stages.metrics.counts import auroc_of_counts
from stages.seed import derive
from stages.serving.tuning.task import Task
from stages.serving.tuning.trials import Trial, best_of

COVERAGE = 0.95
FEWEST = 10  # good held-out images (groups of them), over all categories


class Decision(NamedTuple):
    """difference: AUROC of the best minus that of what is in use. compared: how many others it was picked from, itself included.

    images: groups of good held-out images that it rests on.
    """

    best: Trial
    difference: Interval
    compared: int
    images: int

    @property
    def enough(self) -> bool:
        return self.images >= FEWEST

    @property
    def better(self) -> bool:
        return self.enough and self.difference.low > 0


def decide(task: Task, trials: Sequence[Trial], n_resamples: int, seed: int) -> Decision:
    """trials: trial 0 is what is in use, and has a result."""
    now, best = trials[0], best_of(trials)
    others = [trial for trial in trials[1:] if trial.refused is None]
    images = len({(row["category"], row["group"]) for row in task.val if row["label"] == 0})
    if best is now:
        return Decision(best, Interval(0.0, 0.0, 0.0), len(others), images)
    draws = np.stack([_draws(task, trial, now, n_resamples, seed) for trial in others])  # (T, R)
    values = np.array([trial.auroc - now.auroc for trial in others])
    spread = draws.std(axis=1)
    varied = spread > 0  # a trial with the scores of trial 0 never differs from it
    deviation = np.abs(draws[varied] - values[varied, None]) / spread[varied, None]
    widest = float(np.quantile(deviation.max(axis=0), COVERAGE)) if varied.any() else 0.0
    place = others.index(best)
    half = widest * float(spread[place])
    value = float(values[place])
    return Decision(best, Interval(value, max(-1.0, value - half), min(1.0, value + half)), len(others), images)


def _draws(task: Task, trial: Trial, now: Trial, n_resamples: int, seed: int) -> np.ndarray:
    """(R,) draws of the mean difference over categories. The resamples of a category depend on its name alone: all trials see the same."""
    per_category = []
    for category in task.categories:
        rows = task.judged(category)
        label, group = np.array([row["label"] for row in rows]), np.array([row["group"] for row in rows])
        scores = trial.scores[category], now.scores[category]
        own = derive(seed, "decision", category)
        per_category.append(paired_draws(*scores, label, group, auroc_of_counts, n_resamples, own).samples)
    return np.mean(per_category, axis=0)
