"""`thresholds.txt`: image-level results, fitted thresholds and one confusion matrix, for people.

Every number behind a threshold is computed here from the same images, through one confusion matrix per threshold, so that the file cannot
contradict itself: the F1 beside the F1 threshold is the F1 of the matrix printed below it.
"""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from stages.metrics.confusion import Confusion, confusion
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import auroc, average_precision
from stages.metrics.thresholds import Threshold

_TITLES = {
    "f1_percentile": "F1 (Percentile)",
    "f1_uniform": "F1 (Uniform)",
    "youden": "ROC (Youden J)",
    "percentile_95": "Percentile (95%)",
    "conformal": "Conformal",
}
_MATRIX_OF = (("f1_percentile", "F1"), ("conformal", "Conformal"))


def thresholds_text(
    score: ArrayLike, label: ArrayLike, thresholds: Mapping[str, Threshold], oracle: Mapping[str, Threshold] | None = None
) -> str:
    """The whole file, LF line ends.

    score, label: (N,) of the test images. thresholds: by method, fitted on validation. oracle: by method, fitted on these very test images:
    shown apart under that name, as a number that no user can have. The matrix is that of the F1 threshold, or of the conformal one
    where validation had no anomalies.
    """
    sections = [
        ["=== Image-level Results ===", _share_line("AUROC", auroc, score, label), _share_line("AUPR", average_precision, score, label)],
        ["=== Thresholds ===", *(_line(thresholds[method], score, label) for method in _TITLES if method in thresholds)],
        matrix_section(score, label, thresholds),
    ]
    if oracle:
        sections.append(["=== oracle (test-fitted) ===", *(_line(oracle[method], score, label) for method in _TITLES if method in oracle)])
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def matrix_section(score: ArrayLike, label: ArrayLike, thresholds: Mapping[str, Threshold]) -> list[str]:
    """Title, counts and the ratios that follow from them, at the F1 threshold or else the conformal one."""
    for method, title in _MATRIX_OF:
        threshold = thresholds.get(method)
        if threshold and threshold.value is not None:
            matrix = confusion(score, label, threshold.value)
            ratios = ", ".join(f"{name.capitalize()}: {_ratio(matrix, name)}" for name in ("accuracy", "precision", "recall"))
            return [
                f"=== Confusion Matrix ({title} Threshold) ===",
                f"TP={matrix.tp}, FN={matrix.fn}, TN={matrix.tn}, FP={matrix.fp}",
                ratios,
            ]
    reason = thresholds["conformal"].reason if "conformal" in thresholds else "validation had no scores"
    return ["=== Confusion Matrix ===", f"n/a (no F1 threshold and no conformal threshold: {reason})"]


def _line(threshold: Threshold, score: ArrayLike, label: ArrayLike) -> str:
    title = _TITLES[threshold.method]
    if threshold.method == "conformal" and threshold.target is not None:
        title += f" ({100 * threshold.target:g}% false alarms)"
    if threshold.value is None:
        return f"{title}: n/a ({threshold.reason})"
    details = _details(threshold, confusion(score, label, threshold.value))
    return " | ".join([f"{title}: {_number(threshold.value)}", *details, *([threshold.note] if threshold.note else [])])


def _details(threshold: Threshold, matrix: Confusion) -> list[str]:
    if threshold.method in ("f1_percentile", "f1_uniform"):
        return [f"F1: {_ratio(matrix, 'f1')}"]
    if threshold.method == "youden":
        return [f"Sensitivity: {_ratio(matrix, 'recall')}, Specificity: {_ratio(matrix, 'specificity')}"]
    if threshold.method == "conformal":
        return [promise_text(threshold)]
    return []


def promise_text(threshold: Threshold) -> str:
    """`3 false alarms expected per 1,000 good parts (95 % CI 1-9)` for a conformal threshold."""
    numbers = (threshold.achieved[name] for name in ("false_alarms_per_1000", "false_alarms_low", "false_alarms_high"))
    expected, low, high = (f"{number:.2g}" if number < 10 else f"{number:.0f}" for number in numbers)
    return f"{expected} false alarms expected per 1,000 good parts (95 % CI {low}-{high})"


def _share_line(name: str, metric, score: ArrayLike, label: ArrayLike) -> str:
    try:
        value = metric(score, label)
    except Undefined as undefined:
        return f"{name}: n/a ({undefined})"
    return f"{name}: {value:.3f} ({100 * value:.1f}%)"


def _ratio(matrix: Confusion, name: str) -> str:
    value = getattr(matrix, name)
    return f"n/a ({matrix.reasons[name]})" if value is None else f"{value:.3f}"


def _number(value: float) -> str:
    """Three decimals as the reports have always had, more digits for scores that live on a smaller scale."""
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4g}"
