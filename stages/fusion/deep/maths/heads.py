"""What is read off the features of a record: where it lies among others (contrast), and which class it is of.

The projection is used while learning alone, as in SimCLR and SupCon (Chen et al., arXiv:2002.05709; Khosla et al., arXiv:2004.11362); neighbours are found
by the features before it. Batches are balanced by class, so the class head learns as if all classes were as frequent; `shift`, log of a class's share of
the training records less log of its share of the batches, makes its logits those of the records learnt from
(Menon et al., arXiv:2007.07314, use it the other way).

B records, C classes, the first of them normal, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PROJECTED = 128


class Heads(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, PROJECTED))
        self.classes = nn.Linear(features, classes)
        self.register_buffer("shift", torch.zeros(classes))

    def project(self, features: Tensor) -> Tensor:
        """(B, F) to (B, 128), of unit length."""
        return functional.normalize(self.projection(features), dim=1)

    def balanced(self, features: Tensor) -> Tensor:
        """(B, C) logits as if every class were as frequent: what is learnt."""
        return self.classes(features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) logits at the shares that the classes have in the training records."""
        return self.classes(features) + self.shift


def log_odds(logits: Tensor) -> Tensor:
    """(B, C) to (B,): the logarithm of P(any fault) / P(normal). Raises ValueError where there is no class but normal."""
    if logits.shape[1] < 2:
        raise ValueError("there are no odds with one class")
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def shift(label: Tensor, classes: int, balanced: bool = True) -> Tensor:
    """(C,) float32. label: (N,) int64, classes of the training records; one that none of them has counts as half a record. Without balance it is 0."""
    count = torch.bincount(label, minlength=classes).double().clamp(min=0.5)
    there = int((count >= 1).sum())
    return (count / len(label) * there).log().float() if balanced else torch.zeros(classes)


def log_shares(label: Tensor, classes: int) -> Tensor:
    """(C,) float32: the logarithms of the shares of the classes, what is known of a record that shows nothing. label as in `shift`."""
    count = torch.bincount(label, minlength=classes).double().clamp(min=0.5)
    return (count / count.sum()).log().float()
