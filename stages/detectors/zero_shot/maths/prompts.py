"""What is said of a good and of a bad object: WinCLIP's compositional ensemble, states by templates (arXiv:2303.14814, appendix A).

Public lists hold the line "a jpeg corrupted photo of the o." twice and lack the one with "a"; here both are there, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORMAL = ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage")
ANOMALOUS = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
PHOTOS = ("close-up photo", "bright photo", "dark photo", "jpeg corrupted photo", "blurry photo")
TEMPLATES = (
    "a cropped photo of the {}.",
    *(f"a {photo} of {article} {{}}." for photo in PHOTOS for article in ("a", "the")),
    *(
        f"a photo of {article} {{}}{purpose}."
        for purpose in ("", " for visual inspection", " for anomaly detection")
        for article in ("a", "the")
    ),
    *(f"a photo of {article} {size} {{}}." for size in ("small", "large") for article in ("a", "the")),
)


def sentences(states: Sequence[str], name: str) -> list[str]:
    """Every state of the object `name` in every template."""
    return [template.format(state.format(name)) for state in states for template in TEMPLATES]


def ensemble(text: Callable[[Sequence[str]], Tensor], name: str) -> Tensor:
    """(2, D) of length 1: the mean embedding of all sentences of a good object, then of a bad one; normalised after the mean and not before."""
    normal, anomalous = sentences(NORMAL, name), sentences(ANOMALOUS, name)
    embedded = text([*normal, *anomalous])
    return F.normalize(torch.stack([embedded[: len(normal)].mean(dim=0), embedded[len(normal) :].mean(dim=0)]), dim=1)


def object_name(category: str) -> str:
    """What a sentence calls the objects of a category: metal_nut is a metal nut."""
    return " ".join(category.replace("_", " ").replace("-", " ").split())
