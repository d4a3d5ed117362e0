"""Why a fitted model scored single records as it did: what each modality added, and the stretch of it that speaks most for a fault.

Records are asked for by name, or the worst of a split are taken: those that lie furthest on the wrong side of the model's threshold. What stands against the
record is a typical normal one of training (stages/fusion/explanations.py). Beside each explanation stands how true it is to the model: how much of
the score is gone when its strongest tokens go first, and the same for a random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import io
from stages.datasets.record_sets import SPLITS, open_split
from stages.errors import UserError
from stages.fusion.classifying import names_of
from stages.fusion.scoring import scores, shows
from stages.seed import torch_generator
from stages.serving.record_model import RecordModel, threshold_of
from stages.serving.record_predict import moment

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from stages.datasets.record_store import Subset
    from stages.datasets.records import Records
    from stages.fusion.detector import RecordDetector
    from stages.fusion.explanations import Baseline, Span

WAYS = {
    "gradients": "what each modality adds to the score of a typical normal record",
    "occlusion": "what the score loses where the modality is a typical normal record's",
    "rollout": "the share of each modality in what the fusion read; no sign",
}
FAITHFUL = ("deletion", "insertion", "random_deletion", "random_insertion")


class Explained(NamedTuple):
    total: dict[str, Tensor]  # by modality (B,)
    tokens: dict[str, Tensor]  # by modality (N,) of each token
    windows: dict[str, Tensor]  # by modality what spans are found in: the same, or (B, windows)
    gap: Tensor | None  # (B,) what gradients miss of the difference in score


def explain(model: RecordModel, record: str | None, worst: int | None, split: str = "test", by: str = "gradients") -> dict[str, Any]:
    """What `assay weld explain` says. Raises UserError, NotExplained."""
    import torch

    from stages.fusion.explanations import spans, typical

    if by not in WAYS:
        raise UserError(f"--by must be one of {', '.join(WAYS)}, got {by!r}")
    if split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    detector, shown = model.detector(), io.read_json(io.require(model.place / "config.json")).get("shown")
    train, judged = (open_split(model.dataset, one, model.project, shown) for one in ("train", split))
    chosen = judged.kept(_chosen(model, detector, judged, record, worst))
    records = detector.fitting(chosen.take(range(chosen.samples)))
    baseline = typical(train.kept(((train.label == 0).numpy() & shows(train)).nonzero()[0].tolist()))
    _check(records, baseline)
    found = _explained(detector, records, baseline, by)
    faithful = _faithful(detector, records, baseline, found.tokens, model.seed)
    by_record: dict[str, list[Span]] = {one: [] for one in records.record_id}
    for span in spans(found.windows, records):
        by_record[span.record_id].append(span)
    with torch.no_grad():
        score, stand_in = detector.score(records), detector.score(_stood_for(records, baseline))
    rows = []
    for place, (name, kind) in enumerate(zip(records.record_id, names_of(chosen), strict=True)):
        there = [one for one, ragged in records.tokens.items() if int(ragged.lengths[place])]
        row = {"record_id": name, "class": kind, "score": float(score[place]), "normal_score": float(stand_in[place])}
        row |= {"missing": [one for one in records.tokens if one not in there], "modalities": {one: float(found.total[one][place]) for one in there}}
        row |= {"spans": [_span(model, records, one) for one in by_record[name]]}
        row |= {"gap": None if found.gap is None else float(found.gap[place])}
        rows.append(row | {one: _number(values[place]) for one, values in zip(FAITHFUL, faithful, strict=True)})
    about = {"dataset": model.dataset, "model": model.name, "seed": model.seed, "split": split, "by": by, "says": WAYS[by]}
    return about | {"threshold": threshold_of(model).value, "records": rows}


def render(found: dict[str, Any]) -> str:
    lines = [f"{found['model']} on {found['dataset']}, seed {found['seed']}, {found['split']}; {found['by']}: {found['says']}"]
    for row in found["records"]:
        limit = "" if found["threshold"] is None else f", threshold {found['threshold']:.3g}"
        lines += ["", f"{row['record_id']} ({row['class']}): score {row['score']:.3g}{limit}; as a typical normal record {row['normal_score']:.3g}"]
        spans = {one["modality"]: one for one in row["spans"]}
        for name, value in sorted(row["modalities"].items(), key=lambda one: -one[1]):
            span = spans.get(name)
            where = f"  strongest {span['where']}, {span['strength']:.0%} of all that speaks for a fault" if span else "  nothing in it speaks for a fault"
            lines.append(f"  {name:<10}{value:+9.3g}{where}")
        lines += [f"  missing: {', '.join(row['missing'])}"] if row["missing"] else []
        lines.append(f"  {_told(row)}")
    return "\n".join(lines)


def write(found: dict[str, Any], path: Path) -> None:
    io.write_json(path, found)


def _chosen(model: RecordModel, detector: RecordDetector, judged: Subset, record: str | None, worst: int | None) -> list[int]:
    """Positions in the split."""
    if (record is None) == (worst is None):
        raise UserError("say which record: its id, or --worst N for those that the model judges worst, and not both")
    there = shows(judged)
    if record is not None:
        if record not in judged.record_ids:
            raise UserError(f"no record {record!r} in this split of {model.dataset}; `assay weld explain --worst 5` names some that are")
        place = list(judged.record_ids).index(record)
        if not there[place]:
            raise UserError(f"{record} has none of the modalities that {model.name} is shown, so there is nothing to explain")
        return [place]
    known = np.flatnonzero(there & (judged.label.numpy() >= 0))
    if not len(known):
        raise UserError("no record of this split has a label, so none is known to be judged wrong; name a record instead")
    score, label = scores(detector, judged.kept(known.tolist())), judged.label.numpy()[known]
    beyond = np.where(label == 1, -1, 1) * (score - (threshold_of(model).value or 0.0))  # on the wrong side where above 0
    return known[np.argsort(-beyond, kind="stable")[:worst]].tolist()


def _check(records: Records, baseline: Baseline) -> None:
    if lacking := [name for name, one in records.tokens.items() if len(one.values) and name not in baseline]:
        raise UserError(f"no normal training record has {lacking[0]}, so there is nothing normal to hold it against")


def _explained(detector: RecordDetector, records: Records, baseline: Baseline, by: str) -> Explained:
    from stages.fusion import explanations

    if by == "occlusion":
        lost = explanations.occlusion(detector, records, baseline)
        whole = explanations.occlusion(detector, records, baseline, bins=1)
        return Explained({name: one[:, 0] for name, one in whole.items()}, explanations.by_token(lost, records), lost, None)
    if by == "rollout":
        tokens, gap = explanations.rollout(detector, records), None
    else:
        integrated = explanations.integrated_gradients(detector, records, baseline)
        tokens, gap = integrated.strengths, integrated.gap
    return Explained({name: _summed(one, records.tokens[name].lengths) for name, one in tokens.items()}, tokens, tokens, gap)


def _summed(strength: Tensor, lengths: Tensor) -> Tensor:
    """(N,) of each token to (B,)."""
    import torch

    record = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return torch.zeros(len(lengths)).index_add_(0, record, strength.float().cpu())


def _faithful(detector: RecordDetector, records: Records, baseline: Baseline, tokens: Mapping[str, Tensor], seed: int) -> tuple[Tensor, ...]:
    from stages.fusion import faithfulness

    return tuple(faithfulness.areas(detector, records, baseline, tokens, torch_generator(seed, "random order")))


def _stood_for(records: Records, baseline: Baseline) -> Records:
    from stages.fusion.explanations import stand_ins

    tokens = {name: one._replace(values=stand_ins(one, baseline[name])) if len(one.values) else one for name, one in records.tokens.items()}
    return records._replace(tokens=tokens)


def _span(model: RecordModel, records: Records, span: Span) -> dict[str, Any]:
    from stages.fusion.occlusion import moments

    timed = bool((moments(span.modality, records.tokens[span.modality]) != 0).any())
    where = moment(model, span).partition(",")[0] if timed else "as a whole"
    return {"modality": span.modality, "start": span.start, "end": span.end, "strength": span.strength, "where": where}


def _told(row: dict[str, Any]) -> str:
    if row["deletion"] is None:
        return "the score hardly differs from that of a typical normal record: there is little to explain"
    return (
        f"area under the score, strongest tokens first, random order in brackets: taken away {row['deletion']:.2f} ({row['random_deletion']:.2f}, "
        f"lower is better), given {row['insertion']:.2f} ({row['random_insertion']:.2f}, higher is better)"
    )


def _number(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
