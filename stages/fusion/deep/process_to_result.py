"""What the weld should look like, told from how it was made: sound and film, in the light of the sensors, predict the feature of the photos.

After the idea of Causal-HM (Liu et al., arXiv:2512.21650, whose code is not published; from its description, and nothing else is taken from it):
process and result are not two views of equal rank, the one makes the other, so a weld is anomalous where its photos are not what its process gives. Few
numbers of sensors would drown among wide embeddings, so that they do not stand beside these but scale and shift what is made of them, feature by feature
(FiLM; Perez et al., AAAI 2018, arXiv:1709.07871). Learnt from good welds alone; the score is 1 less the cosine of predicted and seen.

Of each modality the mean over tokens is taken, in deviations from good welds: cosines of raw embeddings are all near 1. The good weld itself
then is 0 and has no direction, and what lies near it has that of noise; so both features have one column more, of the length that a good weld has on the
average, and a feature that lies twice as far off is told from one that does not. A sound or film that is missing is left out, and hidden at random while
learning, so that the other suffices; without sensors nothing is scaled or shifted. A weld without photos, or without sound and film, cannot be judged:
nothing is known of it, and it scores as the mean of good welds. A fault that the process shows and the photos do not is seen only by what it does
to the prediction.

B records, D width of the photos' feature, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.deep.maths.autoencoders import Standardised
from stages.fusion.deep.maths.ragged import record_means
from stages.fusion.detector import RecordDetector
from stages.seed import derive
from stages.types import Batch, Refusal

if TYPE_CHECKING:
    from stages.training import Run

ENOUGH = 20  # good welds of validation that the mean score is taken from; else those of training


class Predictor(nn.Module):
    """Pooled sound and film, with sensors as context, to the feature of the photos."""

    def __init__(self, process: list[int], sensors: int, result: int, hidden: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(width, hidden) for width in process)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.LayerNorm(hidden, elementwise_affine=False)) for _ in range(blocks)
        )
        self.context = nn.ModuleList(nn.Linear(sensors, 2 * hidden) for _ in range(blocks)) if sensors else None
        self.leave, self.dropout = nn.Linear(hidden, result), nn.Dropout(dropout)

    def forward(self, process: list[Tensor], there: Tensor, sensors: Tensor, told: Tensor) -> Tensor:
        """(B, D). process: (B, width) each; there: (B, len(process)) bool; sensors: (B, width); told: (B,) bool, whether there are any."""
        entered = torch.stack([enter(values) for enter, values in zip(self.enter, process, strict=True)], dim=1)
        hidden = (entered * there[..., None]).sum(dim=1) / there.sum(dim=1).clamp(min=1)[:, None]
        for number, block in enumerate(self.blocks):
            made = block(hidden)
            if self.context is not None:
                scale, shift = (self.context[number](sensors) * told[:, None]).chunk(2, dim=1)
                made = made * (1 + scale) + shift
            hidden = hidden + self.dropout(nn.functional.gelu(made))
        return self.leave(hidden)


class ProcessToResult(RecordDetector):
    """image, process, sensors: the names of the modalities. hidden, blocks: the sizes. modality_dropout: the chance that a sound, a film or the sensors
    are hidden while learning, never both sound and film. epochs, steps: whichever ends first; patience: epochs without a lower loss on good welds of val.
    """

    supervised = False

    def __init__(
        self,
        *,
        image: str = "image",
        process: tuple[str, ...] = ("video", "audio"),
        sensors: str = "series",
        hidden: int = 256,
        blocks: int = 2,
        dropout: float = 0.1,
        modality_dropout: float = 0.2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int = 200,
        steps: int | None = None,
        batch_size: int = 32,
        patience: int = 20,
    ) -> None:
        if not process or len({image, sensors, *process}) != 2 + len(process):
            raise ValueError(f"image, process and sensors must be different modalities, got {image!r}, {list(process)} and {sensors!r}")
        if not 0 <= modality_dropout < 1 or not 0 <= dropout < 1:
            raise ValueError(f"dropout and modality_dropout must be in 0..1, 1 left out, got {dropout} and {modality_dropout}")
        super().__init__()
        self.image, self.process, self.sensors = image, tuple(process), sensors
        self.hidden, self.blocks, self.dropout, self.modality_dropout = hidden, blocks, dropout, modality_dropout
        self.learning_rate, self.weight_decay, self.epochs, self.step_limit = learning_rate, weight_decay, epochs, steps
        self.batch_size, self.patience = batch_size, patience
        self.register_buffer("typical", torch.ones((), dtype=torch.float64))  # mean score of good welds

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.made = [name for name in self.process if name in widths]
        if self.image not in widths or not self.made:
            raise Refusal(
                f"a result is predicted from its process: the records need {self.image} and {' or '.join(self.process)}, they have {', '.join(widths)}"
            )
        self.seen = [name for name in (self.image, *self.made, self.sensors) if name in widths]
        self.standardised = nn.ModuleDict({f"of_{name}": Standardised(widths[name]) for name in self.seen})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "network"))
            self.predictor = Predictor(
                [widths[name] for name in self.made],
                widths.get(self.sensors, 0),
                widths[self.image],
                self.hidden,
                self.blocks,
                self.dropout,
            )

    @property
    def nothing(self) -> float:
        return float(self.typical)

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        from stages.training import Plan

        rows, good = self._rows(train), self._rows(val.kept((val.label == 0).nonzero()[:, 0].tolist()))
        if not _judgeable(rows).any():
            raise Refusal(f"no good weld to learn from has {self.image} and {' or '.join(self.made)}")
        for name in self.seen:
            self.standardised[f"of_{name}"].learn(rows[name][rows[f"there.{name}"]])
        self.to(run.device)
        rows, good = (_kept(one, _judgeable(one)) for one in (rows, good))
        watch = "val_loss" if len(good["judgeable"]) else None
        plan = Plan(
            partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay), self.epochs, self.batch_size, self.step_limit,
            watch=watch, patience=self.patience if watch else None,
        )  # fmt: skip
        run.train(self, Rows(rows), self._loss, plan, self._measure(good, run.device) if watch else None, name="network")
        with torch.no_grad():
            known = good if len(good["judgeable"]) >= ENOUGH else rows
            self.typical.fill_(self._distance(_moved(known, self.typical.device)).double().mean())

    def rate(self, records: Records) -> Tensor:
        return self.judged(_moved(self._pooled(records), self.typical.device)).to(records.label.device)

    def judged(self, rows: Mapping[str, Tensor]) -> Tensor:
        """(B,) float64. rows: the means over tokens and what is there, as `_pooled` gives them."""
        return torch.where(rows["judgeable"], self._distance(rows).double(), self.typical)

    def _distance(self, rows: Mapping[str, Tensor], hidden: Tensor | None = None) -> Tensor:
        """(B,) in 0..2: 1 less the cosine of what is predicted and what is seen. hidden: (B, processes + 1) bool, what is hidden; sensors last."""
        there = torch.stack([rows[f"there.{name}"] for name in self.made], dim=1)
        sensors = rows.get(self.sensors, there.new_zeros(there.shape[0], 0, dtype=torch.float32))  # exporters make a constant of `len`
        told = rows.get(f"there.{self.sensors}", there.new_zeros(there.shape[0]))
        if hidden is not None:
            left = there & ~hidden[:, :-1]
            there, told = torch.where(left.any(dim=1, keepdim=True), left, there), told & ~hidden[:, -1]
        parts = {name: self.standardised[f"of_{name}"](rows[name]) * rows[f"there.{name}"][:, None] for name in self.seen}
        predicted = self.predictor([parts[name] for name in self.made], there, parts.get(self.sensors, sensors), told)
        return 1 - cosine_similarity(_directed(predicted), _directed(parts[self.image]), dim=1)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        count = len(batch.label)
        hidden = torch.rand(count, len(self.made) + 1, generator=generator).to(self.typical.device) < self.modality_dropout
        return self._distance(batch.features, hidden).mean()

    def _measure(self, good: Mapping[str, Tensor], device: torch.device) -> Callable[[], Mapping[str, float]]:
        held_out = _moved(good, device)
        return lambda: {"val_loss": float(self._distance(held_out).mean())}

    def _rows(self, records: RecordSet) -> dict[str, Tensor]:
        found = [self._pooled(self.fitting(batch)) for batch in batches(records)]
        if not found:
            none = {name: torch.empty(0, self.widths[name]) for name in self.seen}
            return (
                none
                | {f"there.{name}": torch.empty(0, dtype=torch.bool) for name in self.seen}
                | {"judgeable": torch.empty(0, dtype=torch.bool)}
            )
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def _pooled(self, records: Records) -> dict[str, Tensor]:
        """By modality (B, width), under "there.<modality>" (B,) bool, and "judgeable" (B,) bool."""
        tokens = {name: records.tokens[name] for name in self.seen}
        there = {f"there.{name}": one.lengths > 0 for name, one in tokens.items()}
        process = torch.stack([there[f"there.{name}"] for name in self.made]).any(dim=0)
        means = {name: record_means(one.values.double(), one.lengths).float() for name, one in tokens.items()}
        return {**means, **there, "judgeable": there[f"there.{self.image}"] & process}


class Rows:
    """Pooled records as the training loop takes them."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows, self.samples = rows, len(rows["judgeable"])

    def take(self, positions: list[int]) -> Batch:
        count = len(positions)
        features = {name: part[positions] for name, part in self.rows.items()}
        return Batch(features, torch.zeros(count, dtype=torch.int64), None, [""] * count, [""] * count)


def _directed(feature: Tensor) -> Tensor:
    """(B, D) to (B, D + 1): with the root of D behind, the mean length of standardised good welds."""
    return nn.functional.pad(feature, (0, 1), value=feature.shape[1] ** 0.5)


def _judgeable(rows: Mapping[str, Tensor]) -> Tensor:
    return rows["judgeable"]


def _kept(rows: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    return {name: part[kept] for name, part in rows.items()}


def _moved(rows: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: part.to(device) for name, part in rows.items()}
