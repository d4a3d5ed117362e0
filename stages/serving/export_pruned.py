"""Export without some heads of attention: which of them training records call for, and what different shares of them would cost.

The maths, and its paper, are in stages/fusion/deep/maths/pruning.py. Nothing is chosen here: the share is what the user asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import engine, errors, io
from stages.params import Params
from stages.serving.export_proof import Shown, compared_on, figures, latency, session
from stages.serving.record_model import RecordModel, threshold_of

if TYPE_CHECKING:
    from torch import Tensor

    from stages.datasets.records import Records
    from stages.fusion.deep.maths.graph import Scorer
    from stages.fusion.detector import RecordDetector

SHARES = (0.0, 0.25, 0.5, 0.75)


def check(share: float) -> None:
    if not 0 <= share < 1:
        raise errors.UserError(f"--prune-heads must be a share of all heads, from 0 to below 1; got {share:g}")


def worth(model: RecordModel, detector: RecordDetector, made: Scorer) -> dict[str, Tensor]:
    """What each head is worth on the training records. Raises UserError where there is no head, or nothing to judge one by."""
    from stages.fusion.deep.maths import pruning

    if not pruning.layers(made):
        raise errors.UserError(f"{model.name} has no attention, so there are no heads to take out. Export it without --prune-heads")
    if not detector.supervised:
        raise errors.UserError(
            f"{model.name} learnt from normal records alone: no loss says what a head is worth. Export it without --prune-heads"
        )
    return pruning.importance(made, _learnt_from(model, detector))


def less(made: Scorer, worth: dict[str, Tensor], share: float) -> tuple[Scorer, dict[str, Any]]:
    """The form without that share of its heads, and what went."""
    from stages.fusion.deep.maths import pruning

    gone = pruning.least(worth, share)
    cut = pruning.without(made, gone)
    return cut, {
        "share": share,
        "heads": sum(map(len, worth.values())),
        "taken": sum(map(len, gone.values())),
        "gone": gone,
        "parameters": [sum(one.numel() for one in form.parameters()) for form in (made, cut)],
    }


def scores(made: Scorer, records: Records) -> np.ndarray:
    """(B,) float64, as the form itself says."""
    import torch

    with torch.no_grad():
        return made(*made.fed(records))[0].double().numpy()


def told(pruned: dict[str, Any]) -> str:
    gone = "; ".join(f"{layer} {', '.join(map(str, heads))}" for layer, heads in pruned["gone"].items())
    before, after = pruned["parameters"]
    return f"{pruned['taken']} of {pruned['heads']} heads taken out, {before:,} -> {after:,} parameters: {gone}"


def study(params: Params, model: RecordModel, detector: RecordDetector, shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """What each share would cost, by ONNX files that are not kept. The figures on test are there to be read; nothing is chosen by them, nor by any other."""
    from stages.datasets.record_sets import open_split

    threshold = threshold_of(model).value
    with engine.thread_limit(params.compute.threads):
        shown, made = compared_on(model, detector)
        value = worth(model, detector, made)
        test = open_split(model.dataset, "test", model.project, io.read_json(model.place / "config.json").get("shown"))
        held_out = test.take(range(test.samples))
        held_out = detector.fitting(held_out.take(held_out.present.any(1).nonzero()[:, 0].tolist()))
        exact = detector.score(held_out).double().numpy()
        unseen = Shown(held_out, exact, None, held_out.samples, "test")
        rows = [_row(params, made, value, share, (shown, unseen), threshold) for share in shares]
    return {"dataset": model.dataset, "model": model.name, "seed": model.seed, "compared_on": shown.split, "rows": rows}


def render(found: dict[str, Any]) -> str:
    """A table for a terminal."""
    split = found["compared_on"]
    lines = [f"{found['model']} on {found['dataset']}, heads ranked on training records; test is told and chooses nothing"]
    lines.append(
        f"{'share':>6} {'heads':>7} {'AUROC ' + split:>11} {'AUROC test':>11} {'flips ' + split:>12} {'flips test':>11} {'ONNX bytes':>11} {'p50 ms':>7}"
    )
    for row in found["rows"]:
        seen, test = row[split], row["test"]
        flips = [f"{one['flips']}/{one['compared']}" for one in (seen, test)]
        areas = ["n/a" if one["auroc"] is None else f"{one['auroc']:.4f}" for one in (seen, test)]
        left = f"{row['heads'] - row['taken']}/{row['heads']}"
        lines.append(
            f"{row['share']:>6g} {left:>7} {areas[0]:>11} {areas[1]:>11} {flips[0]:>12} {flips[1]:>11} {row['bytes']:>11,} {row['latency_ms']['p50']:>7.3f}"
        )
    return "\n".join(lines)


def _row(
    params: Params, made: Scorer, worth: dict[str, Tensor], share: float, sets: Sequence[Shown], threshold: float | None
) -> dict[str, Any]:
    from stages.fusion.deep.maths import graph

    form, row = less(made, worth, share)
    content = graph.onnx_bytes(form, {}, "tracing")
    score = session(content, params.compute.threads)
    row |= {"bytes": len(content), "latency_ms": latency(params, sets[0], lambda one: score(graph.feed(one, form.widths, form.lengths)))}
    for shown in sets:
        values = score(graph.feed(shown.records, form.widths, form.lengths))[0]
        row[shown.split] = figures(shown, np.asarray(values, dtype=np.float64), None, threshold)
    return row


def _learnt_from(model: RecordModel, detector: RecordDetector) -> Iterator[tuple[Records, Tensor]]:
    """The training records, a few at a time, with their classes, or with their labels where the detector tells no classes."""
    from stages.datasets.record_sets import open_split
    from stages.datasets.records import batches
    from stages.fusion.deep.maths.pruning import BATCH
    from stages.fusion.detector import class_of

    shown = io.read_json(model.place / "config.json").get("shown")
    for part in batches(open_split(model.dataset, "train", model.project, shown), BATCH):
        target = class_of(part, detector.classes) if detector.telling else part.label
        kept = ((target >= 0) & part.present.any(1)).nonzero()[:, 0].tolist()
        if kept:
            yield detector.fitting(part.take(kept)), target[kept] if detector.telling else target[kept].float()
