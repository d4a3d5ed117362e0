"""What each metric of signals says of scores that know nothing, and how often the intervals hold the truth.

python -m benchmarks.random_series                    random rows for three lengths of events (docs/metrics_series.md)
python -m benchmarks.random_series --coverage 200     share of 95 % intervals that hold the value of a test set 40 times as long
"""

from __future__ import annotations

import argparse

import numpy as np

from stages.metrics.series_judgement import SeriesRule, judge_series

SHOWN = ("roc_auc", "pr_auc", "vus_roc", "vus_pr", "affiliation_f", "range_f1", "event_f1", "f1_oracle", "f1", "pa_k_auc", "pa_f1")
TELLING = ("roc_auc", "pr_auc", "vus_pr", "f1", "recall", "event_f1", "affiliation_f", "false_alarms_per_10k")


def labels(steps: int, length: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """(T,) with events of `length` steps on average, spread evenly but for a shift, `share` of the steps anomalous."""
    label = np.zeros(steps, dtype=int)
    period = round(length / share)
    for start in range(0, steps - period + 1, period):
        own = max(round(length * rng.uniform(0.5, 1.5)), 1)
        at = start + rng.integers(0, period - own)
        label[at : at + own] = 1
    return label


def random_rows(steps: int, seeds: int) -> None:
    print(f"| mean event, steps | {' | '.join(SHOWN)} |")
    for length in (5, 30, 100):
        rng = np.random.default_rng(length)
        label = labels(steps, length, 0.03, rng)
        cells = judge_series(rng.random((seeds, steps)), label, rng.random((seeds, steps)), SeriesRule(resamples=10)).cells
        print(f"| {length} | {' | '.join(format(cells[name]['value'], '.3f') for name in SHOWN)} |")


def correlated(steps: int, label: np.ndarray, held_out: bool, rng: np.random.Generator) -> np.ndarray:
    """Scores with memory (lag-one correlation 0.9); each event is lifted by an amount of its own."""
    noise = rng.standard_normal(steps) * np.sqrt(1 - 0.9**2)
    for step in range(1, steps):
        noise[step] += 0.9 * noise[step - 1]
    if held_out:
        return noise
    edges = np.flatnonzero(np.diff(np.r_[0, label, 0]))
    for start, stop in zip(edges[::2], edges[1::2]):
        noise[start:stop] += rng.exponential(1.5)
    return noise


def coverage(repeats: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    held_out = correlated(20 * steps, np.zeros(0), True, rng)
    long = labels(40 * steps, 30, 0.03, rng)
    truth = judge_series(correlated(len(long), long, False, rng)[None], long, [held_out], SeriesRule(resamples=1)).cells
    held = dict.fromkeys(TELLING, 0)
    for _ in range(repeats):
        label = labels(steps, 30, 0.03, rng)
        cells = judge_series(correlated(steps, label, False, rng)[None], label, [held_out], SeriesRule(resamples=300)).cells
        for name in TELLING:
            held[name] += cells[name]["low"] <= truth[name]["value"] <= cells[name]["high"]
    for name in TELLING:
        print(f"{name:<22} truth {truth[name]['value']:8.3f}   held by {100 * held[name] / repeats:.0f} % of {repeats} intervals")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--coverage", type=int, default=0, metavar="REPEATS")
    given = parser.parse_args()
    if given.coverage:
        coverage(given.coverage, given.steps)
    else:
        random_rows(given.steps, given.seeds)


if __name__ == "__main__":
    main()
