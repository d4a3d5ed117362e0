"""How a file is held against the model that it was made from: the records, the scores, the verdicts, the time.

The validation records (those of training where there are none), and each of them again without each of its modalities, are scored by both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import errors, io
from stages.metrics.inputs import Undefined
from stages.params import Params
from stages.serving.record_model import RecordModel

if TYPE_CHECKING:
    from stages.datasets.records import Records
    from stages.fusion.deep.maths.graph import Scorer
    from stages.fusion.detector import RecordDetector

ROUNDING = 1e-4  # the greatest difference of a score that float32 may make, or of it where it is above 1
AUROC_LOSS = 0.005  # the greatest change of the AUROC that 8-bit weights, or heads that were taken out, may make

Score = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Shown(NamedTuple):
    """Records that model and files are compared on, and what the model says of them."""

    records: Records
    score: np.ndarray  # (B,)
    kind: np.ndarray | None  # (B,) the class that is likeliest; None where the model tells none
    whole: int  # the first so many are as they are, the others lack something that they had
    split: str  # that they are of: val, or train where that is empty
    own: np.ndarray | None = None  # (B,) what the network of the file says, where that is not the model's: heads were taken out


def session(content: bytes, threads: int) -> Score:
    """An ONNX file as a function from its inputs to score (B,), logits (B, C) and features (B, F)."""
    import onnxruntime

    from stages.fusion.deep.maths.graph import OUTPUTS

    onnxruntime.disable_telemetry_events()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 3
    opened = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return lambda feed: tuple(opened.run(list(OUTPUTS), feed))


def compared_on(model: RecordModel, detector: RecordDetector) -> tuple[Shown, Scorer]:
    """The validation records that show the model something, and each again without each modality that it has beside others."""
    from stages.datasets.record_sets import open_split
    from stages.fusion import forms

    shown = io.read_json(model.place / "config.json").get("shown")
    train, val = (open_split(model.dataset, split, model.project, shown) for split in ("train", "val"))
    given = val.take(range(val.samples)) if val.samples else train.take(range(train.samples))
    given = given.take(given.present.any(1).nonzero()[:, 0].tolist())
    if not given.samples:
        raise errors.Missing(f"no record of {model.dataset} to compare an export on. Look at the splits in its manifest.json")
    made = forms.scorer(detector, forms.lengths(detector, train, val))
    whole = detector.fitting(given)
    parts = [whole]
    for name in whole.tokens if len(whole.tokens) > 1 else ():
        left = whole.only([other for other in whole.tokens if other != name])
        changed = (left.present.any(1) & (left.present != whole.present).any(1)).nonzero()[:, 0].tolist()
        parts += [left.take(changed)] if changed else []
    every = _joined(parts)
    score = detector.score(every).double().numpy()
    kind = detector.classify(every).logits.argmax(1).numpy() if detector.telling else None
    return Shown(every, score, kind, whole.samples, "val" if val.samples else "train"), made


def _joined(parts: Sequence[Records]) -> Records:
    """One behind another; all have the same modalities."""
    import torch

    from stages.datasets.records import Ragged, Records

    tokens = {}
    for name in parts[0].tokens:
        own = [one.tokens[name] for one in parts]
        lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(one.lengths for one in own)])
        tokens[name] = Ragged(torch.cat([one.values for one in own]), torch.cat([one.time for one in own]), lengths.cumsum(0))
    return Records([name for one in parts for name in one.record_id], torch.cat([one.label for one in parts]), tokens)


def figures(shown: Shown, score: np.ndarray, kind: np.ndarray | None, threshold: float | None) -> dict[str, Any]:
    """How scores differ from the model's, where they are numbers. `beyond_rounding`: the greatest difference, as a share of the score where that is above 1.

    `flips`: verdicts that differ; `on_threshold`: those of them that rounding alone explains. The threshold is the score of a validation record, to the last
    digit, so that on that record any rounding turns the verdict around; it counts as no flip. `beyond_network`: as `beyond_rounding`, but from what the
    network without some heads says, where the file is of that.
    """
    from stages.metrics.ranking import auroc

    unlike = ~np.isfinite(score)
    apart = np.where(unlike, 0.0, np.abs(score - shown.score))
    share = apart / np.maximum(np.abs(shown.score), 1)
    turned = np.zeros(len(score), bool) if threshold is None else (score > threshold) != (shown.score > threshold)
    worst, label = int((unlike if unlike.any() else apart).argmax()), shown.records.label.numpy()[: shown.whole]
    judged = label >= 0
    try:
        area = auroc(score[: shown.whole][judged], label[judged]) if not unlike.any() else None
    except Undefined:
        area = None
    return {
        "records": shown.whole,
        "compared": len(score),
        "not_numbers": int(unlike.sum()),
        "max_difference": float(apart[worst]),
        "mean_difference": float(apart.mean()),
        "beyond_rounding": float(share.max()),
        "worst_record": shown.records.record_id[worst],
        "auroc": area,
        "flips": int((turned & (share > ROUNDING)).sum()),
        "on_threshold": int((turned & (share <= ROUNDING)).sum()),
        "other_class": 0 if kind is None else int((kind != shown.kind).sum()),
    } | ({} if shown.own is None else {"beyond_network": float((np.abs(score - shown.own) / np.maximum(np.abs(shown.own), 1)).max())})


def refused(name: str, found: dict[str, Any], allow_flips: bool) -> str | None:
    """Why a file is not kept; None where it is."""
    if found["not_numbers"]:
        return f"{found['not_numbers']} scores are not numbers"
    if name != "int8" and "beyond_network" not in found and found["beyond_rounding"] > ROUNDING:
        return f"scores differ by {found['max_difference']:.3g}, more than rounding ({ROUNDING:g}) explains"
    if name != "int8" and found.get("beyond_network", 0) > ROUNDING:
        return f"scores differ from those of its own network by {found['beyond_network']:.3g}, more than rounding ({ROUNDING:g}) explains"
    if found["flips"] and not allow_flips:
        return f"{found['flips']} verdicts differ"
    if found["auroc_change"] is not None and abs(found["auroc_change"]) > AUROC_LOSS and not allow_flips:
        return f"the AUROC differs by {found['auroc_change']:+.4f}, more than {AUROC_LOSS}"
    return None


def latency(params: Params, shown: Shown, call: Callable[[Records], object]) -> dict[str, float]:
    """Of one record, the first of those with the most modalities."""
    from stages.metrics.latency import measure

    rule = params.bench
    one = shown.records.take([int(shown.records.present.sum(1).argmax())])
    found = measure(lambda: call(one), rule.warmup, rule.repeats, rule.seconds)
    return {"p50": round(found.p50_ms, 3), "p95": round(found.p95_ms, 3)}
