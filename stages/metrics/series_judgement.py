"""Everything that is said of one model on one category of signals: metrics with intervals, thresholds, and tables per kind of anomaly and of step.

Two kinds of steps speak. Held-out normal ones (validation) fix the threshold of each seed; test steps are scored and judged at it. What is
fitted on test steps is called an oracle (`f1_oracle`, `pa_k_auc`, `pa_f1`) or has no threshold at all. Affiliation, range-based and event metrics
are those of the deployable threshold, where TSB-AD prints the best of 100: no user has that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.datasets.recordings import Region
from stages.metrics.alarms import REASONS, alarm_sums
from stages.metrics.bootstrap import Draws, seed_shares
from stages.metrics.conformal import conformal_quantile
from stages.metrics.counts import auroc_of_counts, average_precision_of_counts
from stages.metrics.event_blocks import Blocks, alarm_draws, delay_draws, draw_blocks, event_blocks, ranked_draws, volume_draws
from stages.metrics.events import Lengths, runs
from stages.metrics.inputs import Flags, Floats, Undefined, check_finite, checked_label, require_both_classes
from stages.metrics.point_adjust import SHARES, area_over_shares, pa_k_curve
from stages.metrics.ranking import rank
from stages.metrics.series_tables import Cell, Seen, kind_table, mean_cell, step_kinds, type_table
from stages.metrics.thresholds import Threshold
from stages.metrics.vus import BUFFER, vus

RANKED = ("roc_auc", "pr_auc", "f1_oracle", "pa_k_auc", "pa_f1")
VOLUMES = ("vus_roc", "vus_pr")
SERIES_METRICS = (  # in the order of the tables
    *(
        "roc_auc",
        "pr_auc",
        "vus_roc",
        "vus_pr",
        "affiliation_f",
        "affiliation_precision",
        "affiliation_recall",
        "range_f1",
        "event_f1",
        "f1_oracle",
    ),
    *(
        "f1",
        "precision",
        "recall",
        "pa_k_auc",
        "pa_f1",
        "delay",
        "missed_event_rate",
        "false_alarms_per_10k",
        "false_alarm_rate",
        "missing_alarm_rate",
    ),
)
INFLATED = ("pa_f1",)  # printed beside the random row, ranked by nowhere
AT_THRESHOLD = (*REASONS, "delay")
NO_THRESHOLD = "there is no held-out normal score to fix a threshold with"


class SeriesRule(NamedTuple):
    """The part of the protocol that judging needs."""

    buffer: int = BUFFER  # L of VUS, in steps
    reach: int = 100  # a normal step so near after an anomaly is a disturbing one: the length of a window
    false_alarm_rates: tuple[float, ...] = (1e-2, 1e-3)  # of normal steps; the first one's threshold is the deployable one
    resamples: int = 1000


class SeriesJudgement(NamedTuple):
    cells: dict[str, Cell]  # by metric, in the order of SERIES_METRICS
    draws: dict[str, Draws]  # for the mean over categories
    types: dict[str, dict[str, Any]]
    kinds: dict[str, dict[str, Any]]
    thresholds: dict[str, list[Threshold]]  # by false-alarm rate, one a seed
    at_rate: dict[str, dict[str, Cell]]  # by false-alarm rate

    def result(self) -> dict[str, Any]:
        """Plain data in a stable order."""
        thresholds = {rate: [threshold.to_dict() for threshold in seeds] for rate, seeds in self.thresholds.items()}
        return {
            "metrics": self.cells,
            "types": self.types,
            "kinds": self.kinds,
            "thresholds": thresholds,
            "at_false_alarm_rate": self.at_rate,
        }


class Scene(NamedTuple):
    """What is the same for all seeds."""

    anomalous: Flags  # (T,)
    lengths: Lengths
    blocks: Blocks
    weight: np.ndarray  # (1 + R, N): the data itself, then the draws
    buffer: int


class Measured(NamedTuple):
    """One metric of one seed; NaN where it has no value, and the reason."""

    value: float
    drawn: Floats  # (1 + R,) the first one is that of the data, as coarse as the draws are
    reason: str = ""


def judge_series(
    score: ArrayLike,
    label: ArrayLike,
    normal_score: Sequence[ArrayLike],
    rule: SeriesRule,
    lengths: Lengths = None,
    regions: Sequence[Region] = (),
    disturbing: Flags | None = None,
) -> SeriesJudgement:
    """score: (S, T), one row per training seed, of test segments laid end to end; label: (T,) 0/1; lengths: of the segments.

    normal_score: S rows of held-out normal scores, (n,) each, may be empty. regions: placed in those T steps; events of the label where none is given.
    disturbing: (T,), see `step_kinds`.
    """
    rows, anomalous = _checked(score, label, normal_score)
    thresholds = {f"{rate:g}": [fit_threshold(normal, rate) for normal in normal_score] for rate in rule.false_alarm_rates}
    deployed = next(iter(thresholds.values()))
    seeds = [Seen(row, None if at.value is None else row > at.value) for row, at in zip(rows, deployed)]
    blocks, rng = event_blocks(anomalous, lengths, rule.buffer // 2), np.random.default_rng(0)
    resamples = draw_blocks(blocks, anomalous, rule.resamples, rng)
    shares = seed_shares(len(rows), rule.resamples, rng)
    scene = Scene(anomalous, lengths, blocks, np.vstack([np.ones(len(blocks.eventful)), resamples.weight]), rule.buffer)
    measured = [_measure(seen, scene) for seen in seeds]
    cells, draws = {}, {}
    for name in SERIES_METRICS:
        each = [one[name] for one in measured]
        cells[name] = mean_cell([one.value for one in each], each[0].reason)
        if cells[name]["value"] is not None:
            draws[name] = _draws(cells[name]["value"], each, shares, _highest(name, anomalous), resamples.resolved)
            cells[name] |= draws[name].interval._asdict() | _said_beside(name, rule)
    kinds = step_kinds(anomalous, rule.reach, lengths, disturbing)
    named = regions or [Region(int(start), int(stop), "anomaly") for start, stop in zip(*runs(anomalous, lengths))]
    at_rate = {rate: _at(rows, fitted, scene) for rate, fitted in thresholds.items()}
    return SeriesJudgement(cells, draws, type_table(seeds, named, kinds), kind_table(seeds, kinds), thresholds, at_rate)


def fit_threshold(normal_score: ArrayLike, false_alarm_rate: float) -> Threshold:
    """The lowest threshold that so few held-out normal steps exceed (see `conformal`), n/a where there is none.

    Neighbouring steps are not exchangeable, so for signals the rate is what held-out steps show, not a promise.
    """
    if not np.size(normal_score):
        return Threshold("conformal", None, false_alarm_rate, reason=NO_THRESHOLD)
    promise = conformal_quantile(normal_score, false_alarm_rate)
    shown = {"false_alarm_rate": float((np.asarray(normal_score) > promise.value).mean()), "n_normal": promise.n_normal}
    note = f"{promise.n_normal} normal steps are too few for {false_alarm_rate:g}: this is their highest score"
    return Threshold("conformal", promise.value, false_alarm_rate, shown, note=None if promise.reached else note)


def _checked(score: ArrayLike, label: ArrayLike, normal_score: Sequence[ArrayLike]) -> tuple[Floats, Flags]:
    """(S, T) and (T,)."""
    rows = np.asarray(score, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"score must have shape (S, T), one row per seed, got {rows.shape}")
    check_finite(rows, "score")
    if len(normal_score) != len(rows):
        raise ValueError(f"expected held-out normal scores of {len(rows)} seeds, one row each as in score, got {len(normal_score)}")
    return rows, checked_label(label, rows.shape[1])


def _measure(seen: Seen, scene: Scene) -> dict[str, Measured]:
    """All of SERIES_METRICS for one seed."""
    ranked = _or_reason(RANKED, lambda: _ranked(seen.score, scene))
    volumes = _or_reason(VOLUMES, lambda: _volumes(seen.score, scene))
    alarmed = _or_reason(AT_THRESHOLD, lambda: _alarmed(seen.alarm, scene))
    return ranked | volumes | alarmed


def _ranked(score: Floats, scene: Scene) -> dict[str, Measured]:
    require_both_classes(scene.anomalous, "step")
    ranking = rank(score, scene.anomalous)
    curve = pa_k_curve(score, scene.anomalous, scene.lengths)
    values = {
        "roc_auc": auroc_of_counts(ranking.positive, ranking.negative),
        "pr_auc": average_precision_of_counts(ranking.positive, ranking.negative),
        "f1_oracle": curve[SHARES.index(100)],
        "pa_k_auc": area_over_shares(curve),
        "pa_f1": curve[SHARES.index(0)],
    }
    drawn = ranked_draws(score, scene.anomalous, scene.lengths, scene.blocks, scene.weight)
    return {name: Measured(float(value), drawn[name]) for name, value in values.items()}


def _volumes(score: Floats, scene: Scene) -> dict[str, Measured]:
    roc, pr = vus(score, scene.anomalous, scene.buffer, scene.lengths)
    drawn = volume_draws(score, scene.anomalous, scene.lengths, scene.buffer, scene.blocks, scene.weight)
    return {"vus_roc": Measured(roc, drawn["vus_roc"]), "vus_pr": Measured(pr, drawn["vus_pr"])}


def _alarmed(alarm: Flags | None, scene: Scene) -> dict[str, Measured]:
    if alarm is None:
        raise Undefined(NO_THRESHOLD)
    drawn = alarm_draws(alarm_sums(alarm, scene.anomalous, scene.lengths, scene.blocks.of_step), scene.weight)
    drawn["delay"] = delay_draws(alarm, runs(scene.anomalous, scene.lengths), scene.blocks, scene.weight)
    return {name: Measured(float(row[0]), row, REASONS.get(name, "no event was found")) for name, row in drawn.items()}


def _or_reason(names: Sequence[str], measure: Callable[[], dict[str, Measured]]) -> dict[str, Measured]:
    try:
        return measure()
    except Undefined as undefined:
        return {name: Measured(float("nan"), np.empty(0), str(undefined)) for name in names}


def _draws(value: float, seeds: Sequence[Measured], shares: Floats, highest: float, resolved: bool) -> Draws:
    """Draws over blocks and over the seeds that have a value; 0 .. highest where too few blocks leave the spread unknown.

    A draw without a value (no alarm in it, say) is left out, and the others are repeated in its place.
    """
    if not resolved:
        return Draws(value, np.resize([0.0, highest], len(shares)))
    have = np.array([np.isfinite(seed.value) for seed in seeds])
    samples = np.stack([seed.drawn[1:] + seed.value - seed.drawn[0] for seed in seeds if np.isfinite(seed.value)], axis=1)
    share = shares[:, have] * np.isfinite(samples)
    total = share.sum(axis=1)
    mean = np.nansum(samples * share, axis=1)[total > 0] / total[total > 0]
    return Draws(value, np.resize(np.clip(mean, 0.0, highest), len(shares)))


def _highest(name: str, anomalous: Flags) -> float:
    """The highest value a metric can take on these steps; all start at 0."""
    if name == "delay":
        return float(runs(anomalous).length.max(initial=1) - 1)
    return 10_000.0 if name == "false_alarms_per_10k" else 1.0


def _said_beside(name: str, rule: SeriesRule) -> dict[str, Any]:
    return ({"buffer": rule.buffer} if name in VOLUMES else {}) | ({"inflated": True} if name in INFLATED else {})


def _at(rows: Floats, fitted: Sequence[Threshold], scene: Scene) -> dict[str, Cell]:
    """Every metric at one false-alarm rate, without intervals."""
    once = scene._replace(weight=scene.weight[:1])
    alarms = [None if threshold.value is None else row > threshold.value for row, threshold in zip(rows, fitted)]
    seeds = [_or_reason(AT_THRESHOLD, lambda alarm=alarm: _alarmed(alarm, once)) for alarm in alarms]
    return {name: mean_cell([seed[name].value for seed in seeds], seeds[0][name].reason) for name in AT_THRESHOLD}
