"""The contract of a detector of records: records in, of which any modality may be missing, one score a record out.

What a detector knows of the data's shape are the names and widths of its modalities; they are fixed by `fit`, stored with it, and whatever is scored
later is held against them. A subclass defines `prepare`, `learn` and `rate`.

B records, M modalities, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records, RecordSet, batches
from stages.errors import UserError
from stages.types import NotFitted, Refusal, Resizing

if TYPE_CHECKING:
    from stages.training import Run


class WrongRecords(UserError, ValueError):
    """Records that do not fit the model: a modality it never saw, another width, or nothing that it knows."""


class RecordDetector(Resizing):
    """Everything learnt is a parameter or a buffer, so `state_dict()` and `widths` are the whole model."""

    supervised: bool = True  # learns from labels: its score is the logit of P(anomalous). False: from normal records alone, its score is raw
    drawn: bool = True  # depends on the seed
    blind: str | None = None  # why it is a control and no detector: what it does not look at

    def __init__(self) -> None:
        super().__init__()
        self.widths: dict[str, int] = {}

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
        self.open(train.widths, run.seed)
        self.learn(train, val, run)
        return self.eval()

    def open(self, widths: dict[str, int], seed: int = 0) -> Self:
        """Make the layers for these modalities, as drawn by `seed`; what `load_state_dict` needs before it."""
        if not widths:
            raise Refusal("the records have no modality")
        self.widths = dict(widths)
        self.prepare(self.widths, seed)
        return self.eval()

    @torch.no_grad()
    def score(self, records: Records) -> Tensor:
        """(B,) float32, higher is more anomalous: the logit of a supervised model, the raw score of another.

        Modalities may stand in any order and be missing. Raises WrongRecords for what does not fit, and for a record that has no modality at all.
        """
        return self.rate(self.fitting(records)).float()

    @property
    def nothing(self) -> float | None:
        """The score that it gives where it knows nothing of a record, say where its one modality is missing; None where it always knows something."""
        return None

    def fitting(self, records: Records) -> Records:
        """The records with the modalities of the model in its order, checked."""
        if not self.widths:
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(train, val, run), or open(widths) and load_state_dict, first")
        for name, one in records.tokens.items():
            if name not in self.widths and len(one.values):
                raise WrongRecords(f"the model never saw the modality {name!r}; it knows {', '.join(self.widths)}. Leave it out, or train anew")
            if name in self.widths and len(one.values) and one.values.shape[1] != self.widths[name]:
                raise WrongRecords(f"{name} has width {one.values.shape[1]}, in training it had {self.widths[name]}. Use the same encoder")
        fitted = records._replace(tokens={name: self._given(name, records) for name in self.widths})
        if (empty := (~fitted.present.any(1)).nonzero()[:, 0]).numel():
            raise WrongRecords(f"{records.record_id[int(empty[0])]} has none of the modalities that the model knows ({', '.join(self.widths)})")
        return fitted

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


def unseen_in(records: RecordSet) -> set[str]:
    """The modalities that none of these records has."""
    unseen = set(records.widths)
    for batch in batches(records):
        unseen -= {name for name, one in batch.tokens.items() if len(one.values)}
        if not unseen:
            break
    return unseen
