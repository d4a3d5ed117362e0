"""The contract of a detector of records: records in, of which any modality may be missing, one score a record out.

What a detector knows of the data's shape are the names and widths of its modalities; they are fixed by `fit`, stored with it, and whatever is scored
later is held against them. A subclass defines `prepare`, `learn` and `rate`.

A detector may also tell which fault it is: then it is `telling`, its classes are "normal" and the kinds of fault it learnt from, and `classify` gives their
logits, and the features that they are told by.

B records, M modalities, C classes, D width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from stages.datasets.records import NORMAL, Ragged, Records, RecordSet, batches
from stages.errors import UserError
from stages.types import NotFitted, Refusal, Resizing

if TYPE_CHECKING:
    from stages.training import Run


class WrongRecords(UserError, ValueError):
    """Records that do not fit the model: a modality it never saw, another width, or nothing that it knows."""


class Classified(NamedTuple):
    logits: Tensor  # (B, C), columns in the order of `classes`
    features: Tensor  # (B, F) what the nearest neighbours of a record are found by, of unit length


class RecordDetector(Resizing):
    """Everything learnt is a parameter or a buffer, so `state_dict()`, `widths` and `classes` are the whole model."""

    supervised: bool = True  # learns from labels: its score is the logit of P(anomalous). False: from normal records alone, its score is raw
    drawn: bool = True  # depends on the seed
    blind: str | None = None  # why it is a control and no detector: what it does not look at
    telling: bool = False  # it tells which class a record is of: `classify`

    def __init__(self) -> None:
        super().__init__()
        self.widths: dict[str, int] = {}
        self.classes: list[str] = []  # "normal" and the kinds of fault that it learnt from, of one that is `telling`

    def fit(self, train: RecordSet, val: RecordSet, run: Run) -> Self:
        """Learn from labelled records; what is unsupervised sees the normal ones only. `val` is for early stopping, penalties and scales, and may be empty.

        Raises Refusal where there is nothing to learn from.
        """
        label = train.label
        if (label < 0).any():
            raise Refusal(f"{int((label < 0).sum())} records to learn from have no label; give them one or take them out of the split train")
        if self.supervised and len(label.unique()) < 2:
            raise Refusal("the records to learn from are all of one label; a supervised model needs normal and anomalous ones")
        if not (label == 0).any():
            raise Refusal("there is no normal record to learn from")
        if not self.supervised:
            train = train.kept((label == 0).nonzero()[:, 0].tolist())
        if unseen := sorted(unseen_in(train)):
            kind = "record" if self.supervised else "normal record"
            raise Refusal(
                f"no {kind} to learn from has {' or '.join(unseen)}, which others have: nothing can be learnt of it. "
                "Take its extract out of params.yaml, or let the split give it to train"
            )
        self.open(train.widths, run.seed, class_names(train) if self.telling else ())
        self.learn(train, val, run)
        return self.eval()

    def open(self, widths: dict[str, int], seed: int = 0, classes: Sequence[str] = ()) -> Self:
        """Make the layers for these modalities and classes, as drawn by `seed`; what `load_state_dict` needs before it."""
        if not widths:
            raise Refusal("the records have no modality")
        self.widths, self.classes = dict(widths), list(classes)
        self.prepare(self.widths, seed)
        return self.eval()

    @torch.no_grad()
    def score(self, records: Records) -> Tensor:
        """(B,) float32, higher is more anomalous: the logit of a supervised model, the raw score of another.

        Modalities may stand in any order and be missing. Raises WrongRecords for what does not fit, and for a record that has no modality at all.
        """
        return self.rate(self.fitting(records)).float()

    @torch.no_grad()
    def classify(self, records: Records) -> Classified:
        """Which class each record is of, by a detector that is `telling`; raises what `score` raises."""
        return self.tell(self.fitting(records))

    @property
    def nothing(self) -> float | None:
        """The score that it gives where it knows nothing of a record, say where its one modality is missing; None where it always knows something."""
        return None

    def fitting(self, records: Records) -> Records:
        """The records with the modalities of the model in its order, checked."""
        fitted = self.shaped(records)
        if (empty := (~fitted.present.any(1)).nonzero()[:, 0]).numel():
            raise WrongRecords(f"{records.record_id[int(empty[0])]} has none of the modalities that the model knows ({', '.join(self.widths)})")
        return fitted

    def shaped(self, records: Records) -> Records:
        """As `fitting`, but some records may show nothing."""
        if not self.widths:
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(train, val, run), or open(widths) and load_state_dict, first")
        for name, one in records.tokens.items():
            if name not in self.widths and len(one.values):
                raise WrongRecords(f"the model never saw the modality {name!r}; it knows {', '.join(self.widths)}. Leave it out, or train anew")
            if name in self.widths and len(one.values) and one.values.shape[1] != self.widths[name]:
                raise WrongRecords(f"{name} has width {one.values.shape[1]}, in training it had {self.widths[name]}. Use the same encoder")
        return records._replace(tokens={name: self._given(name, records) for name in self.widths})

    def _given(self, name: str, records: Records) -> Ragged:
        given = records.tokens.get(name)
        if given is not None and len(given.values):
            return given
        none = torch.empty(0, self.widths[name], device=records.label.device)
        return Ragged(none, none.new_empty(0), torch.zeros(records.samples + 1, dtype=torch.int64, device=none.device))

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        raise NotFitted(f"{type(self).__name__} does not define prepare")

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        raise NotFitted(f"{type(self).__name__} does not define learn")

    def rate(self, records: Records) -> Tensor:
        """Records as `fitting` gives them to (B,)."""
        raise NotFitted(f"{type(self).__name__} does not define rate")

    def tell(self, records: Records) -> Classified:
        """Records as `fitting` gives them to their classes."""
        raise NotFitted(f"{type(self).__name__} does not define tell")


def class_names(records: RecordSet) -> list[str]:
    """The classes that these records have, "normal" first. Raises Refusal where anomalous ones have no kind of fault."""
    kinds = list(records.fault) or [""] * records.samples
    bad = [kind for kind, label in zip(kinds, records.label.tolist(), strict=True) if label == 1]
    if "" in bad:
        raise Refusal(f"{bad.count('')} anomalous records to learn from do not say which fault they have, and a model that tells faults needs it")
    return [NORMAL, *sorted(set(bad))]


def class_of(records: RecordSet, classes: Sequence[str]) -> Tensor:
    """(B,) int64: the position of each record's class in `classes`, -1 for one that is not among them or that nobody judged."""
    place = {name: number for number, name in enumerate(classes)}
    kinds = list(records.fault) or [""] * records.samples
    named = [NORMAL if label == 0 else kind if label == 1 else "" for kind, label in zip(kinds, records.label.tolist(), strict=True)]
    return torch.tensor([place.get(name, -1) for name in named], dtype=torch.int64)


def unseen_in(records: RecordSet) -> set[str]:
    """The modalities that none of these records has."""
    unseen = set(records.widths)
    for batch in batches(records):
        unseen -= {name for name, one in batch.tokens.items() if len(one.values)}
        if not unseen:
            break
    return unseen
