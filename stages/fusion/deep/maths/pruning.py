"""Which heads of attention a fitted network can do without, and the network without them.

Each head's part is multiplied by a gate of 1 before it leaves its layer. What a head is worth is the mean over training records of how steeply a record's
loss changes with its gate, whatever the direction, divided by the length of these numbers in its layer. The heads worth least are cut out for good: their
rows of queries, keys and values and their columns of what leaves. Of every layer one head stays.

After Michel et al., "Are Sixteen Heads Really Better than One?" (arXiv:1905.10650), section 4.1; from the paper alone. Deviations: a layer keeps its last
head; heads are ranked once, and nothing is trained afterwards.

B records, C classes, D width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Records
from stages.fusion.deep.maths.graph import Attending, Scorer

BATCH = 64  # records whose gates are held at once
Heads = dict[str, list[int]]  # of each layer of attention, by the name of its module, the numbers of some heads


def layers(form: nn.Module) -> dict[str, Attending]:
    """All attention of a form, by the names of its modules."""
    return {name: part for name, part in form.named_modules() if isinstance(part, Attending)}


def losses(form: Scorer, records: Records, target: Tensor) -> Tensor:
    """(B,): the cross-entropy of each record. target: (B,) int64, its class; or float, 1 for anomalous, where the score is all that the form tells."""
    score, logits, _ = form(*form.fed(records))
    if target.is_floating_point():
        return functional.binary_cross_entropy_with_logits(score, target, reduction="none")
    return functional.cross_entropy(logits, target, reduction="none")


def importance(form: Scorer, parts: Iterable[tuple[Records, Tensor]]) -> dict[str, Tensor]:
    """Of each layer (heads,), of length 1, or all 0 where no head changes the loss. parts: records and targets as of `losses`, some BATCH at a time."""
    summed = {name: torch.zeros(part.heads) for name, part in layers(form).items()}
    for records, target in parts:
        for name, slope in slopes(form, records, target).items():
            summed[name] += slope.abs().sum(0)
    return {name: functional.normalize(worth, dim=0) for name, worth in summed.items()}


def slopes(form: Scorer, records: Records, target: Tensor) -> dict[str, Tensor]:
    """Of each layer (B, heads): by how much each record's loss changes with each gate."""
    found = layers(form)
    gates = {name: torch.ones(records.samples, part.heads, requires_grad=True) for name, part in found.items()}
    try:
        for name, part in found.items():
            part.gate = gates[name]
        with torch.enable_grad():
            total = losses(form, records, target).sum()  # no record's gate acts on another's loss
            slope = torch.autograd.grad(total, list(gates.values()), allow_unused=True, materialize_grads=True)
    finally:
        for part in found.values():
            part.gate = None
    return dict(zip(gates, slope, strict=True))


def least(worth: Mapping[str, Tensor], share: float) -> Heads:
    """The share of all heads that is worth least, rounded to whole heads; fewer where else a layer would have none. Of equals the first goes first."""
    order = sorted((float(one), name, head) for name, part in worth.items() for head, one in enumerate(part))
    left = {name: len(part) for name, part in worth.items()}
    gone: Heads = {name: [] for name in worth}
    wanted = int(share * len(order) + 0.5)
    for _, name, head in order:
        if wanted and left[name] > 1:
            gone[name].append(head)
            left[name], wanted = left[name] - 1, wanted - 1
    return {name: sorted(heads) for name, heads in gone.items() if heads}


def without(form: Scorer, gone: Heads) -> Scorer:
    """A copy of the form whose layers have not these heads."""
    made = copy.deepcopy(form)
    for name, part in layers(made).items():
        if name in gone:
            cut(part, gone[name])
    return made


def cut(part: Attending, gone: list[int]) -> None:
    """Take heads out of a layer, in place."""
    width = part.query.out_features // part.heads
    kept = [head * width + column for head in range(part.heads) if head not in gone for column in range(width)]
    if not kept:
        raise ValueError(f"a layer keeps at least one of its heads, all {part.heads} were to go")
    for name in ("query", "key", "value"):
        setattr(part, name, _linear(getattr(part, name), rows=kept))
    part.out, part.heads = _linear(part.out, columns=kept), part.heads - len(set(gone))


def _linear(whole: nn.Linear, rows: list[int] | None = None, columns: list[int] | None = None) -> nn.Linear:
    """Some rows or columns of a linear layer."""
    weight, bias = whole.weight.detach(), None if whole.bias is None else whole.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return made
