"""The points that are searched: two grids of 432 combinations each.

`seed` has the factors of the published ablation: 2 x 2 x 3 x 3 x 2 x 2 x 3. Its description calls the masking strategy fixed to `patch`, but only with
both strategies are there 432 combinations. `improved` spends as many on what that study found to matter: lower masking ratios, masking after the
encoder, a shallower teacher, and no push at all.

Three factors are about labelled anomalies in the training data. Without labels (any regime but `weak`) their levels are the same model, and only the
first of each is run.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

Factors = dict[str, tuple[Any, ...]]

GRIDS: dict[str, Factors] = {
    "seed": {
        "masking_ratio": (0.4, 0.7),
        "masking_strategy": ("patch", "feature_wise"),
        "num_patches": (10, 25, 50),
        "margin_type": ("hinge", "softplus", "dynamic"),
        "force_mask_anomaly": (False, True),
        "patch_level_loss": (True, False),
        "patchify_mode": ("cnn_first", "patch_cnn", "linear"),
    },
    "improved": {
        "masking_ratio": (0.10, 0.15, 0.25, 0.40),
        "mask_stage": ("before", "after"),
        "num_teacher_layers": (2, 3, 4),
        "num_patches": (10, 25),
        "margin_type": ("none", "softplus", "dynamic"),
        "patchify_mode": ("patch_cnn", "linear", "cnn_first"),
    },
}
NEEDS_LABELS = ("margin_type", "force_mask_anomaly", "patch_level_loss")


class Point(NamedTuple):
    """One combination and its place in the whole grid, counted from 0, by which it is known."""

    number: int
    levels: dict[str, Any]


def points(grid: str, regime: str = "weak") -> list[Point]:
    """All combinations that differ in this regime, the last factor changing fastest. Raises KeyError for a grid that there is not."""
    if grid not in GRIDS:
        raise KeyError(f"no grid {grid!r}; known: {', '.join(GRIDS)}")
    factors = GRIDS[grid]
    every = [Point(number, dict(zip(factors, levels))) for number, levels in enumerate(itertools.product(*factors.values()))]
    fixed = () if regime == "weak" else [name for name in NEEDS_LABELS if name in factors]
    return [point for point in every if all(point.levels[name] == factors[name][0] for name in fixed)]


def searched(grid: str, regime: str) -> list[str]:
    """The factors that have more than one level among `points`."""
    return [name for name in GRIDS[grid] if regime == "weak" or name not in NEEDS_LABELS]
