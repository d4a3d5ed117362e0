"""Everything that is said of one model on one category: metrics with intervals, thresholds from held-out images, and what they do on test images.

Three kinds of images speak. Held-out good ones (out of fold, and validation) fit the thresholds. Test images are scored against them. Test images
under a shift (other light, blur) say how much of both survives. What is fitted on test images is named an oracle and used for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.metrics.bins import PixelBins
from stages.metrics.bootstrap import Draws, bootstrap_draws, mean_interval, pixel_draws
from stages.metrics.confusion import confusion
from stages.metrics.inputs import Undefined
from stages.metrics.pixels import FPR_LIMITS, aupro_name, pixel_metrics
from stages.metrics.ranking import IMAGE_METRICS
from stages.metrics.thresholds import Threshold, fit_thresholds
from stages.metrics.thresholds_text import thresholds_text

Cell = dict[str, Any]  # {"value", "low", "high"}, {"value"} where no interval is known, {"value": None, "reason"} where there is none
DEFAULT = "conformal"
TRANSDUCTIVE = "transductive: a score holds only among the images that were scored with it, so no threshold holds for other images"
DIFFERENT = 0.01  # p below which out-of-fold and validation scores are taken for two distributions
AT_THRESHOLD = ("accuracy", "precision", "recall", "f1", "false_alarm_rate")


class Scored(NamedTuple):
    """One split as one model with one seed sees it; N images in the order of the manifest."""

    sample_id: list[str]
    label: np.ndarray  # (N,) 0 or 1
    score: np.ndarray  # (N,) float32
    maps: np.ndarray | None  # (N, H, W) float32
    masks: np.ndarray | None  # (N, H, W) bool


class Rule(NamedTuple):
    """The part of the protocol that judging needs."""

    fpr_limits: Sequence[float]
    target_false_alarm_rate: float
    resamples: int
    pixel_bins_above: int


class Judgement(NamedTuple):
    cells: dict[str, Cell]
    draws: dict[str, Draws]  # for the mean over categories
    shift: dict[str, dict[str, Cell]]  # by name of the shifted test split
    thresholds: dict[str, Threshold]
    oracle: dict[str, Threshold]
    held_out: np.ndarray  # (n,) scores of good images that the thresholds were fitted on
    text: str  # thresholds.txt


def metric_names(fpr_limits: Sequence[float] = FPR_LIMITS) -> list[str]:
    """All metrics with intervals, in the order of the tables."""
    return [*IMAGE_METRICS, "pixel_auroc", "pixel_ap", "pixel_f1_max", *(aupro_name(limit, fpr_limits) for limit in fpr_limits)]


def judge_category(
    scored: Mapping[str, Sequence[Scored]],
    groups: Mapping[str, Sequence[str]],
    masked: Mapping[str, np.ndarray],
    held_out: np.ndarray,
    rule: Rule,
    transductive: bool = False,
) -> Judgement:
    """scored: by split ("val", "test", other tests), one entry a seed. groups: by split, what must be resampled whole.

    masked: by split, (N,) whether an image's mask is known. held_out: (n,) out-of-fold scores of the first seed's training images, may be empty.

    transductive: each split was scored as a set of its own, so there is no threshold, and only what ranks the images of one split is told.
    """
    test, val = scored["test"], scored["val"][0]
    cells, draws = _ranked(test, groups["test"], masked["test"], rule)
    normal, warning = exchangeable(held_out, val.score[val.label == 0])
    thresholds = {
        method: threshold._replace(note="; ".join(note for note in (threshold.note, warning) if note) or None)
        for method, threshold in fit_thresholds(val.score, val.label, rule.target_false_alarm_rate, normal).items()
    }
    if transductive:
        thresholds, normal = {method: Threshold(method, None, reason=TRANSDUCTIVE) for method in thresholds}, normal[:0]
    oracle = fit_thresholds(test[0].score, test[0].label, rule.target_false_alarm_rate)
    cells |= at_threshold(test[0], thresholds[DEFAULT])
    shift = {
        split: _shifted(seeds, groups[split], thresholds[DEFAULT], cells, rule)
        for split, seeds in scored.items()
        if split not in ("val", "test")
    }
    oracle = {method: oracle[method] for method in ("f1_percentile", "f1_uniform", "youden")}
    return Judgement(cells, draws, shift, thresholds, oracle, normal, thresholds_text(test[0].score, test[0].label, thresholds, oracle))


def exchangeable(out_of_fold: np.ndarray, val: np.ndarray) -> tuple[np.ndarray, str | None]:
    """The good scores that may speak for the final model, and what to say where some may not.

    out_of_fold, val: (n,), (m,). Both are of images that their model never saw, but the models of the folds have learnt from fewer images. Where
    that shows (two-sample Kolmogorov-Smirnov test, p < 0.01), their scores are not those of the final model, and val speaks alone.
    """
    if not len(val) or not len(out_of_fold) or same_distribution_p(out_of_fold, val) >= DIFFERENT:
        return np.concatenate([out_of_fold, val]), None
    medians = f"{np.median(out_of_fold):.4g} against {np.median(val):.4g}"
    return val, (
        f"the {len(out_of_fold)} out-of-fold scores were left out, as models of fewer images score differently here (median {medians} in validation); "
        "more training images would bring the two together"
    )


def same_distribution_p(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of (n,) and (m,), by the asymptotic law with Stephens' correction for small samples.

    Stephens, "Use of the Kolmogorov-Smirnov, Cramer-von Mises and related statistics without extensive tables", J. R. Stat. Soc. B 32 (1970).
    """
    from scipy.special import kolmogorov  # scipy.stats has the test too, and takes a second to import

    values = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(one), values, side="right") / len(one) for one in (first, second)]
    root = np.sqrt(len(first) * len(second) / len(values))
    return float(kolmogorov((root + 0.12 + 0.11 / root) * np.abs(below[0] - below[1]).max()))


def at_threshold(test: Scored, threshold: Threshold) -> dict[str, Cell]:
    """Accuracy, precision, recall, F1 and false-alarm rate of one confusion matrix, at the default threshold, for the first seed."""
    if threshold.value is None:
        return {name: {"value": None, "reason": threshold.reason} for name in AT_THRESHOLD}
    if not len(test.score):
        return {name: {"value": None, "reason": "no test images"} for name in AT_THRESHOLD}
    matrix = confusion(test.score, test.label, threshold.value)
    rates = {name: matrix.rates[name] for name in AT_THRESHOLD[:4]} | {
        "false_alarm_rate": None if matrix.specificity is None else 1 - matrix.specificity
    }
    reasons = matrix.reasons | {"false_alarm_rate": matrix.reasons.get("specificity")}
    return {name: {"value": value} if value is not None else {"value": None, "reason": reasons[name]} for name, value in rates.items()}


def mean_over(categories: Mapping[str, Judgement]) -> dict[str, Cell]:
    """Unweighted mean over the categories that have each metric; says over how many where some have none."""
    means: dict[str, Cell] = {}
    for name in next(iter(categories.values())).cells:
        have = [judged for judged in categories.values() if judged.cells[name]["value"] is not None]
        if not have:
            means[name] = next(iter(categories.values())).cells[name]
            continue
        means[name] = _cell(mean_interval([judged.draws[name] for judged in have])) if name in have[0].draws else _plain_mean(name, have)
        if len(have) < len(categories):
            means[name]["over"] = f"{len(have)} of {len(categories)} categories"
    return means


def _plain_mean(name: str, have: Sequence[Judgement]) -> Cell:
    return {"value": float(np.mean([judged.cells[name]["value"] for judged in have]))}


def _ranked(test: Sequence[Scored], group: Sequence[str], masked: np.ndarray, rule: Rule) -> tuple[dict[str, Cell], dict[str, Draws]]:
    """The metrics of `metric_names`, and their draws where they are defined."""
    image, image_reason = _or_reason(lambda: _image_draws(test, group, rule))
    pixel, pixel_reason = _or_reason(lambda: _pixel_draws(test, group, masked, rule))
    draws = image | pixel
    reasons = {name: image_reason if name in IMAGE_METRICS else pixel_reason for name in metric_names(rule.fpr_limits)}
    cells = {name: _cell(draws[name].interval) if name in draws else {"value": None, "reason": reason} for name, reason in reasons.items()}
    return cells, draws


def _image_draws(seeds: Sequence[Scored], group: Sequence[str], rule: Rule) -> dict[str, Draws]:
    return bootstrap_draws(np.stack([one.score for one in seeds]), seeds[0].label, group, IMAGE_METRICS, rule.resamples)


def _pixel_draws(seeds: Sequence[Scored], group: Sequence[str], masked: np.ndarray, rule: Rule) -> dict[str, Draws]:
    """Exact values up to `pixel_bins_above` pixels, binned ones above; draws from per-image counts in both cases."""
    if seeds[0].masks is None or not masked.any():
        raise Undefined("the data set has no masks")
    if seeds[0].maps is None:
        raise Undefined("the method gives no anomaly map")
    masks = seeds[0].masks[masked]
    binned = [PixelBins.from_maps(one.maps[masked], masks, fpr_limits=rule.fpr_limits) for one in seeds]
    exact = None
    if masks.size <= rule.pixel_bins_above:
        each = [pixel_metrics(one.maps[masked], masks, rule.fpr_limits) for one in seeds]
        exact = {name: float(np.mean([values[name] for values in each])) for name in each[0]}
    return pixel_draws(binned, np.asarray(group)[masked], exact, rule.resamples)


def _shifted(seeds: Sequence[Scored], group: Sequence[str], threshold: Threshold, cells: dict[str, Cell], rule: Rule) -> dict[str, Cell]:
    """What is left under a shift: AUROC, how far it fell, and false alarms and recall at the threshold that was fixed without it."""
    draws, reason = _or_reason(lambda: _image_draws(seeds, group, rule))
    auroc = _cell(draws["image_auroc"].interval) if draws else {"value": None, "reason": reason}
    fixed = at_threshold(seeds[0], threshold)
    before, after = cells["image_auroc"]["value"], auroc["value"]
    drop = (
        {"value": before - after}
        if before is not None and after is not None
        else {"value": None, "reason": reason or "no AUROC without the shift"}
    )
    return {"image_auroc": auroc, "image_auroc_drop": drop, "false_alarm_rate": fixed["false_alarm_rate"], "recall": fixed["recall"]}


def _or_reason(compute: Callable[[], dict[str, Draws]]) -> tuple[dict[str, Draws], str]:
    try:
        return compute(), ""
    except Undefined as undefined:
        return {}, str(undefined)


def _cell(interval: Any) -> Cell:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
