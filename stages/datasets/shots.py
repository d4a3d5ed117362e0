"""The few normal images that a k-shot model learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stages.seed import derive


def references(samples: Sequence[dict[str, Any]], shots: int | None, seed: int) -> list[dict[str, Any]]:
    """The `shots` normal images of each category that a few-shot model learns from, in the order of `samples`; all samples where shots is None.

    Drawn by seed, the same for every model; the images of fewer shots are among those of more. Fewer than `shots` where there are no more.
    """
    if shots is None:
        return list(samples)
    normal = sorted((sample for sample in samples if sample["label"] == 0), key=lambda sample: derive(seed, "shots", sample["sample_id"]))
    drawn, number = set(), Counter()
    for sample in normal:
        if number[sample["category"]] < shots:
            drawn.add(sample["sample_id"])
            number[sample["category"]] += 1
    return [sample for sample in samples if sample["sample_id"] in drawn]
