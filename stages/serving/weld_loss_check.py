"""Whether the loss and the sampler do on the records of a data set what they should, before hours are spent on a training.

The loss is held against its formula, written as plain loops, on drawn features with the labels of a real batch. The sampler is asked for some epochs of
the training records, and what it drew is counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.datasets.record_sets import open_split
from stages.fusion.deep.maths.learning import Learning
from stages.fusion.deep.maths.sampler import balanced
from stages.fusion.deep.maths.supcon import SupConLoss
from stages.fusion.detector import class_names, class_of
from stages.seed import torch_generator

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCHS, WIDTH, VIEWS = 20, 16, 2
CLOSE = 1e-6


def checked(dataset: str, modalities: Sequence[str] | None = None) -> dict[str, Any]:
    """classes: how often each was drawn, and the most and the least that one of its records was. checks: name, whether it holds, and what was found."""
    train = open_split(dataset, "train", modalities=modalities)
    learnt = train.kept((train.label >= 0).nonzero()[:, 0].tolist())
    names = class_names(learnt)
    kind, learning = class_of(learnt, names), Learning()
    size = learning.classes_per_batch * learning.per_class
    epochs = [balanced(kind, learning.classes_per_batch, learning.per_class)(torch_generator(0, "loss check", epoch)) for epoch in range(EPOCHS)]
    batches = [epoch[start : start + size] for epoch in epochs for start in range(0, len(epoch) - size + 1, size)]
    drawn = torch.bincount(torch.tensor([place for epoch in epochs for place in epoch]), minlength=len(kind))
    return {
        "dataset": dataset,
        "classes": [_class(name, number, kind, drawn) for number, name in enumerate(names)],
        "checks": [*_of_sampler(kind, drawn, batches, epochs), *_of_loss(kind, batches)],
    }


def _class(name: str, number: int, kind: Tensor, drawn: Tensor) -> dict[str, Any]:
    own = drawn[kind == number]
    share = float(own.sum() / drawn.sum())
    return {"class": name, "records": len(own), "drawn": int(own.sum()), "share": share, "least": int(own.min()), "most": int(own.max())}


def _of_sampler(kind: Tensor, drawn: Tensor, batches: list[list[int]], epochs: list[list[int]]) -> list[dict[str, Any]]:
    share = torch.stack([drawn[kind == one].sum() for one in kind.unique()]) / drawn.sum()
    apart = float((share * len(share) - 1).abs().max())
    alone = sum(int((torch.bincount(kind[batch]) == 1).sum()) for batch in batches)
    return [
        _check("an epoch has as many draws as there are records", {len(epoch) for epoch in epochs} == {len(kind)}, f"{len(kind)} records"),
        _check("classes are drawn equally often", apart < 0.15, f"furthest from its share by {apart:.1%}"),
        _check("every record is drawn", bool(drawn.min() > 0), f"{int((drawn == 0).sum())} of {len(drawn)} never, in {EPOCHS} epochs"),
        _check("every record of a batch has another of its class", alone == 0, f"{alone} of {sum(map(len, batches))} have not"),
    ]


def _of_loss(kind: Tensor, batches: list[list[int]]) -> list[dict[str, Any]]:
    label = kind[batches[0]] if batches else kind
    features = normalize(torch.randn(len(label), VIEWS, WIDTH, generator=torch_generator(0, "features"), dtype=torch.float64), dim=2)
    loss = SupConLoss()
    ours, theirs = float(loss(features, label)), by_loops(features, label, loss.tau)
    alike = normalize(torch.eye(int(label.max()) + 1, WIDTH, dtype=torch.float64)[label][:, None].expand(-1, VIEWS, -1), dim=2)
    told = float(loss(alike, label))
    return [
        _check("the loss is that of its formula", abs(ours - theirs) < CLOSE * max(1, theirs), f"{ours:.9f}, in plain loops {theirs:.9f}"),
        _check("features that tell the classes apart lose less than drawn ones", told < ours, f"{told:.3f} against {ours:.3f}"),
    ]


def by_loops(features: Tensor, label: Tensor, tau: float) -> float:
    """Supervised contrast, L_out (Khosla et al., arXiv:2004.11362, equation 2), anchors without a positive left out. features: (B, V, D), label: (B,)."""
    flat, kind = features.flatten(0, 1).tolist(), label.repeat_interleave(features.shape[1]).tolist()
    each = []
    for at, anchor in enumerate(flat):
        like = [math.exp(sum(a * b for a, b in zip(anchor, other, strict=True)) / tau) if place != at else 0.0 for place, other in enumerate(flat)]
        positive = [one for place, one in enumerate(like) if place != at and kind[place] == kind[at]]
        if positive:
            each.append(-sum(math.log(one / sum(like)) for one in positive) / len(positive))
    return sum(each) / len(each)


def _check(name: str, holds: bool, found: str) -> dict[str, Any]:
    return {"check": name, "holds": holds, "found": found}


def render(found: dict[str, Any]) -> str:
    wide = max(len(one["class"]) for one in found["classes"])
    lines = [f"{'class':<{wide}}   records     share  a record was drawn"]
    lines += [f"{one['class']:<{wide}} {one['records']:>9} {one['share']:>9.1%}  {one['least']} to {one['most']} times" for one in found["classes"]]
    return "\n".join([*lines, "", *(f"{'ok ' if one['holds'] else 'NOT'} {one['check']}: {one['found']}" for one in found["checks"])])
