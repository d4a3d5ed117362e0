"""A random number for each image: what chance looks like under the same protocol. It is drawn from the image's bytes, so it never depends
on order."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

import torch

from stages.types import Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class RandomScore(Detector):
    """Scores are uniform in 0..1, one draw per seed and image content."""

    one_pass = True
    blind = "a random number knows nothing of defects"  # why it need not find one

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.empty(0, dtype=torch.int64))  # (1,)

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        self.seed = torch.tensor([run.seed])
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.seed)
        salt = int(self.seed).to_bytes(8, "big", signed=True)
        digests = [hashlib.blake2b(image.contiguous().cpu().numpy().tobytes(), digest_size=8, salt=salt) for image in features["pixels"]]
        return Prediction(torch.tensor([int.from_bytes(digest.digest(), "big") / 2**64 for digest in digests]), None)
