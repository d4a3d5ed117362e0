"""Freezes what TSB-AD 1.5 and telemeval 0.3.4 (which carries the authors' affiliation code) say of twenty small series, as test fixtures.

Neither is a dependency; from the repository's root, in an environment with the packages of requirements.lock:

    pip install --no-deps --target .venv-peers/references tsb-ad==1.5 telemeval==0.3.4
    PYTHONPATH=.venv-peers/references python -m benchmarks.series_references

writes tests/metrics/series_references.json. Left out of a case is what their code gets wrong at a border: TSB-AD loses the last step of an event at
the end of a series (event F1) and never adjusts the first step of a series (PA).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = Path("tests/metrics/series_references.json")


class Case(NamedTuple):
    steps: int
    events: tuple[tuple[int, int], ...]  # start, stop
    buffer: int
    lift: float = 1.5  # of the scores in events, in deviations of the noise
    decimals: int = 3  # few make ties
    threshold: float = 1.0  # of the alarms


CASES = {
    "one event, not at a border": Case(80, ((30, 40),), 10),
    "one event, no buffer": Case(80, ((30, 40),), 0),
    "one event, buffer of one step": Case(80, ((30, 40),), 1),
    "odd buffer": Case(80, ((30, 40),), 15),
    "event at the start": Case(90, ((0, 8), (50, 60)), 12),
    "event at the end": Case(90, ((20, 30), (80, 90)), 12),
    "events at both ends": Case(90, ((0, 8), (40, 45), (84, 90)), 12),
    "buffer over the start": Case(70, ((4, 9), (40, 44)), 20),
    "overlapping buffers": Case(100, ((30, 36), (44, 50)), 24),
    "three events in one buffer": Case(100, ((40, 42), (45, 47), (49, 52)), 30),
    "events one step apart": Case(60, ((20, 25), (26, 30)), 8),
    "single-point events": Case(100, ((10, 11), (40, 41), (43, 44), (90, 91)), 16),
    "long event": Case(120, ((20, 90),), 20),
    "most steps anomalous": Case(60, ((2, 50),), 10),
    "ties": Case(100, ((20, 30), (60, 75)), 10, decimals=0),
    "all scores equal": Case(60, ((20, 30),), 10, lift=0.0, decimals=-2, threshold=-1.0),
    "perfect scores": Case(60, ((20, 30), (45, 50)), 10, lift=50.0, threshold=25.0),
    "scores worse than chance": Case(100, ((20, 30), (60, 75)), 10, lift=-2.0),
    "buffer wider than the series": Case(40, ((15, 20),), 100),
    "more steps than thresholds": Case(600, ((50, 60), (200, 260), (400, 401), (590, 595)), 40),
}


def scene(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, (T,) each."""
    label = np.zeros(case.steps, dtype=int)
    for start, stop in case.events:
        label[start:stop] = 1
    score = np.random.default_rng(seed).standard_normal(case.steps) + case.lift * label
    return np.round(score, case.decimals) + 0.0, label


def reference(case: Case, score: np.ndarray, label: np.ndarray) -> dict[str, float]:
    from telemeval.metrics._affiliation_vendor.generics import convert_vector_to_events
    from telemeval.metrics._affiliation_vendor.metrics import pr_from_events
    from TSB_AD.evaluation.basic_metrics import basic_metricor, generate_curve

    alarm = (score > case.threshold).astype(int)
    grader = basic_metricor()
    near = pr_from_events(convert_vector_to_events(alarm), convert_vector_to_events(label), (0, case.steps))
    *_, vus_roc, vus_pr = generate_curve(label, score, case.buffer)
    values = {
        "roc_auc": grader.metric_ROC(label, score),
        "pr_auc": grader.metric_PR(label, score),
        "vus_roc": vus_roc,
        "vus_pr": vus_pr,
        "affiliation_precision": near["precision"],
        "affiliation_recall": near["recall"],
    }
    if not alarm.all():  # they see no range where every step is flagged
        values["range_f1"] = grader.metric_RF1(label, score, preds=alarm)
    if not label[-1]:
        values["event_f1"] = grader.metric_EventF1PA(label, score, preds=alarm)
    if not label[0]:
        values["pa_f1_at_threshold"] = grader.metric_PointF1PA(label, score, preds=alarm)
    return {name: float(value) for name, value in values.items()}


def frozen(name: str, case: Case, seed: int) -> dict[str, Any]:
    score, label = scene(case, seed)
    return {"name": name, **case._asdict(), "score": score.tolist(), "reference": reference(case, score, label)}


def main() -> None:
    warnings.simplefilter("ignore")
    cases = [frozen(name, case, seed) for seed, (name, case) in enumerate(CASES.items())]
    made_by = "python -m benchmarks.series_references, tsb-ad 1.5, telemeval 0.3.4"
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f'{{"made_by": {json.dumps(made_by)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{FILE}: {sum(len(case['reference']) for case in cases)} values of {len(cases)} series")


if __name__ == "__main__":
    main()
