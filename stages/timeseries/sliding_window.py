"""The names of a well-known example, over the real things: generate a signal, cut it into windows, build the network.

    from stages.timeseries import Config, set_seed, SlidingWindowTimeSeriesGenerator, SlidingWindowDataset, SelfDistilledMAEMultivariate

The pipeline uses none of this. What differs from that example: a region that crosses the split is left out of both sides, values are standardised with
the training part alone, and only `set_seed` touches a global random state.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from stages.datasets.injected import ADDING
from stages.datasets.recordings import Region, label_of
from stages.datasets.server_metrics import VARIABLES, generate
from stages.seed import derive, torch_generator
from stages.timeseries.masked import masks
from stages.timeseries.masked.losses import MarginType
from stages.timeseries.masked.network import MAEOutput, Network, PatchifyMode, Shape
from stages.timeseries.windows import Kind, kinds, views


@dataclass
class Config:
    """Sizes and choices of the example. Fields may be set after construction; `check` is called where they are used."""

    seq_length: int = 100
    num_features: int = 8
    sliding_window_total_length: int = 440_000
    sliding_window_stride: int = 10
    anomaly_interval_scale: float = 1.5
    d_model: int = 64
    nhead: int = 4
    num_encoder_layers: int = 3
    num_teacher_decoder_layers: int = 4
    num_student_decoder_layers: int = 1
    dim_feedforward: int = 256
    dropout: float = 0.1
    num_patches: int = 25
    patch_size: int = 4
    patchify_mode: PatchifyMode = "linear"
    masking_ratio: float = 0.4
    masking_strategy: Literal["patch", "feature_wise"] = "patch"
    mask_stage: Literal["before", "after"] = "after"
    mask_last_n: int | None = None  # None: one patch
    margin_type: MarginType = "hinge"
    margin: float = 0.5
    lambda_disc: float = 0.5
    dynamic_margin_k: float = 3.0
    patch_level_loss: bool = True
    force_mask_anomaly: bool = False
    batch_size: int = 32
    num_epochs: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    random_seed: int = 42

    def check(self) -> None:
        """Raises ValueError where the sizes do not fit each other."""
        if self.num_patches * self.patch_size != self.seq_length:
            raise ValueError(
                f"num_patches x patch_size must be seq_length = {self.seq_length}, got {self.num_patches} x {self.patch_size} = "
                f"{self.num_patches * self.patch_size}; set all three"
            )
        if self.hidden_at_the_end % self.patch_size or not 0 < self.hidden_at_the_end < self.seq_length:
            raise ValueError(
                f"mask_last_n must be a multiple of patch_size = {self.patch_size} below {self.seq_length}, got {self.mask_last_n}"
            )

    @property
    def hidden_at_the_end(self) -> int:
        """Steps."""
        return self.patch_size if self.mask_last_n is None else self.mask_last_n

    def shape(self) -> Shape:
        self.check()
        return Shape(
            steps=self.seq_length, variables=self.num_features, patches=self.num_patches, width=self.d_model, heads=self.nhead,
            encoder_layers=self.num_encoder_layers, teacher_layers=self.num_teacher_decoder_layers, student_layers=self.num_student_decoder_layers,
            feedforward=self.dim_feedforward, dropout=self.dropout, patchify=self.patchify_mode,
            by_variable=self.masking_strategy == "feature_wise", mask_before=self.mask_stage == "before",
        )  # fmt: skip


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, for code that draws from them. Nothing in Assay does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


class SlidingWindowTimeSeriesGenerator:
    """Eight metrics of a server with the seven kinds of anomalies that add something."""

    def __init__(
        self, total_length: int = 440_000, num_features: int = 8, interval_scale: float = 1.5, seed: int = 42, gain: float = 1.0
    ) -> None:
        """gain: strength of the anomalies. Raises ValueError for another number of features than there are metrics."""
        if num_features != len(VARIABLES):
            raise ValueError(f"the generator makes {len(VARIABLES)} features ({', '.join(VARIABLES)}), asked for {num_features}")
        self.total_length, self.interval_scale, self.seed, self.gain = total_length, interval_scale, seed, gain

    def generate(self) -> tuple[np.ndarray, np.ndarray, tuple[Region, ...]]:
        """signals (T, 8) float32, point_labels (T,) int8, anomaly_regions."""
        made = generate(self.total_length, gain=self.gain, seed=self.seed, interval_scale=self.interval_scale, kinds=tuple(ADDING))
        return made.values, label_of(made.regions, self.total_length), made.regions


class SlidingWindowDataset(Dataset):
    """Windows of one side of a split in time, standardised with the mean and deviation of the training side.

    A sample is (window (L, V) float32, label of its last `mask_last_n` steps, point labels (L,), Kind). Windows that would cross the split, or that touch
    a region which does, are left out.
    """

    def __init__(
        self,
        signals: ArrayLike,
        point_labels: ArrayLike,
        anomaly_regions: Sequence[Region],
        window_size: int = 100,
        stride: int = 10,
        mask_last_n: int = 4,
        split: Literal["train", "test"] = "train",
        train_ratio: float = 0.5,
        seed: int = 42,
        counts: Mapping[Kind, int] | None = None,
    ) -> None:
        """counts: how many windows of a kind to draw with `seed` (all where there are fewer, or where a kind is not named)."""
        values, label = torch.as_tensor(np.asarray(signals, np.float32)), torch.as_tensor(np.asarray(point_labels, np.int8))
        if len(values) != len(label) or not 0 < train_ratio < 1 or not 0 < mask_last_n <= window_size:
            raise ValueError(
                f"expected as many labels as steps, train_ratio in 0..1 and mask_last_n in 1..{window_size}, got {len(label)} labels of {len(values)} "
                f"steps, {train_ratio}, {mask_last_n}"
            )
        border = int(len(values) * train_ratio)
        crossing = [region for region in anomaly_regions if region.start < border < region.stop]
        start, stop = (0, border) if split == "train" else (border, len(values))
        for region in crossing:
            start, stop = (start, min(stop, region.start)) if split == "train" else (max(start, region.stop), stop)
        learnt_from = values[: min([border, *(region.start for region in crossing)])]
        self.centre, self.spread = learnt_from.mean(0), learnt_from.std(0).clamp(min=1e-6)
        part, self.mask_last_n = (values[start:stop] - self.centre) / self.spread, mask_last_n
        self._windows, self._labels = views(part, window_size, stride), views(label[start:stop], window_size, stride)
        self.kinds = kinds(label[start:stop], window_size, stride, mask_last_n)
        self.chosen = self._drawn(counts or {}, seed)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = self.chosen[position]
        labels = self._labels[at]
        return self._windows[at].clone(), labels[-self.mask_last_n :].any().long(), labels.clone(), self.kinds[at]

    def _drawn(self, counts: Mapping[Kind, int], seed: int) -> Tensor:
        parts = []
        for kind in Kind:
            places = (self.kinds == kind).nonzero()[:, 0]
            order = torch.randperm(len(places), generator=torch_generator(seed, "windows", kind.name))
            parts.append(places[order[: counts.get(kind, len(places))]])
        return torch.cat(parts).sort().values


class SelfDistilledMAEMultivariate(Network):
    """The network of a Config, initialised from its `random_seed`."""

    def __init__(self, config: Config) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.random_seed, "network"))
            super().__init__(config.shape())
        self.config = config

    def forward(
        self, window: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None, ratio: float | None = None
    ) -> MAEOutput:
        """window: (B, seq_length, num_features). mask: (B, num_patches) bool, True is hidden; drawn with `ratio` (masking_ratio) if None."""
        return super().forward(window, mask, generator, self.config.masking_ratio if ratio is None else ratio)

    def last_hidden(self, batch: int) -> Tensor:
        """(batch, num_patches) bool: the mask of inference, which hides the last `mask_last_n` steps."""
        return masks.last(self.config.num_patches, self.config.hidden_at_the_end // self.config.patch_size).expand(batch, -1)
