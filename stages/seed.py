"""Every random choice has its own generator, named by what it is for, so that adding one never shifts another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> numpy.random.Generator:
    import numpy

    return numpy.random.default_rng(derive(seed, *purpose))
