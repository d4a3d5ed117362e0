"""What every encoder of raw media promises: a file in, tokens out, the same ones alone or in a batch.

`read` decodes one file and brings it to the form that the network takes; it is safe to call from several threads. `encode` turns some of what
`read` gave into tokens. Both together are the only way from a file to features, so that stored features and those of a file that is judged
later cannot differ. Everything is frozen, in evaluation mode, and without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.datasets.records import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class Place(NamedTuple):
    """Where an encoder runs. device: "cpu" or "cuda"; threads: of one process; backbones: the local folder of weights."""

    device: str
    threads: int
    backbones: Path


class TokenEncoder(NamedTuple):
    reads: str  # which of the five kinds of media: image, video, audio, series, text
    width: int | None  # the D of its tokens; None where it depends on what the files hold
    read: Callable[[Path], Any]  # raises DataError for a file that cannot be read
    encode: Callable[[Sequence[Any]], list[Tokens]]  # one Tokens for each, in order
    identity: dict[str, Any]  # JSON; equal identities give equal tokens. "weights": of the network, or "none"

    def __call__(self, paths: Sequence[Path]) -> list[Tokens]:
        """The tokens of some files."""
        return self.encode([self.read(path) for path in paths])


def at_moments(values: Tensor, moments: Sequence[float], end: float | None = None) -> Tokens:
    """Tokens (T, D) whose times are scaled to 0..1. moments: (T,) in any unit, from 0; end: the moment that is 1, the last by default."""
    import torch

    time = torch.tensor(moments, dtype=torch.float64)
    end = float(time.max()) if end is None else end
    scaled = (time / end if end > 0 else torch.zeros_like(time)).clamp(0, 1)
    return Tokens(values.float().contiguous(), scaled.float())


def in_parts(lengths: Sequence[int], values: Tensor) -> list[Tensor]:
    """(sum of lengths, D) to one (length, D) each."""
    return list(values.split(list(lengths)))
