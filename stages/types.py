"""What passes between the parts of the image task: features in, one prediction out; and what detectors of all tasks share.

B batch, C channels, H W pixels, h w feature grid. A detector never knows whether its features came from stored shards, from a float16 store or
from an encoder that runs as it asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from stages.errors import UserError

if TYPE_CHECKING:
    from stages.training import Run

Features = dict[str, Tensor]  # {"layer2": (B, C, h, w) float32, ...} and always "pixels": (B, 3, H, W) uint8


class Batch(NamedTuple):
    features: Features
    label: Tensor  # (B,) int64, 1 = anomalous
    mask: Tensor | None  # (B, H, W) bool, or None where the data set has no masks
    sample_id: list[str]
    category: list[str]


class Batches(Protocol):
    """One split of one category: re-iterable in a fixed order, and addressable by position."""

    samples: int

    def __iter__(self) -> Iterator[Batch]: ...

    def take(self, positions: list[int]) -> Batch:
        """The samples at these positions, in this order."""
        ...


class Prediction(NamedTuple):
    image_score: Tensor  # (B,) float32, higher is more anomalous, raw and unbounded
    anomaly_map: Tensor | None  # (B, H, W) same direction, at the size of "pixels"; None if the method cannot localise


class Need(NamedTuple):
    """What a detector asks of the encoder entry it is paired with."""

    layers: tuple[str, ...] = ()
    backbone: str | None = None  # a student must copy its teacher's architecture; None = any
    aux: tuple[str, ...] = ()  # auxiliary images that `fit` draws on, by name: keys of `Run.aux`, e.g. "textures"


class Refusal(UserError, RuntimeError):
    """A known reason why a model cannot be had here (weights absent, too few images): a row in the tables, not a crash."""


class NotFitted(RuntimeError):
    """`score` was called before `fit` or `load_state_dict`."""


class Resizing(nn.Module):
    """Buffers take the size of what is loaded, so that they can be registered empty."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Detector(Resizing):
    """Everything learnt is a parameter or a buffer, so `state_dict()` is the whole model.

    Buffers that `fit` creates are registered empty in `__init__`; they take the size of what is loaded.
    """

    needs: Need = Need()
    scope: str = "category"  # or "dataset": one model over all categories
    zero_shot: bool = False  # True: can be fitted without any image
    transductive: bool = False  # True: scores a set, each image among the others, and no image alone
    one_pass: bool = False  # True: fit is one cheap pass over stored features, so K-fold out-of-fold scores are affordable

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        """Learn from normal samples. `val` holds held-out samples of the train split, or None."""
        raise NotFitted(f"{type(self).__name__} does not define fit")

    def score(self, features: Features) -> Prediction:
        """No gradient, no side effect; the result for one image does not depend on its batch, unless the detector is transductive."""
        raise NotFitted(f"{type(self).__name__} does not define score")

    def require_fitted(self, buffer: Tensor) -> None:
        if buffer.numel() == 0:
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(train, val, run) or load_state_dict first")
