"""Accept, reject or review, and which fault it looks like: what the first seed of a model that tells classes says of a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import io
from stages.metrics.class_calibration import class_probabilities
from stages.metrics.verdicts import VerdictRule, two_classes

RANKED = 3  # faults that are named
LOGIT = "logit_"


class ClassVerdict(NamedTuple):
    decision: str | None  # "accept", "reject" or "review"; None where held-out records gave no rule
    told: str  # the class, "normal" or a kind of fault
    ranking: list[tuple[str, float]]  # the likeliest faults with their share among the faults, RANKED of them

    @property
    def text(self) -> str:
        """reject: burnthrough .81, overlap .12, spatter .04"""
        faults = ", ".join(f"{name.replace('_', ' ')} {share:.2f}".replace(" 0.", " .") for name, share in self.ranking)
        return f"{self.decision or 'no rule to accept or reject by'}; if faulty: {faults}"


def rule_of(folder: Path) -> tuple[VerdictRule | None, float | None]:
    """Of a result: the rule and what it promises, the coverage. Both None where there is no such model."""
    path = folder / "verdicts.json"
    stored = io.read_json(path) if path.is_file() else {"rule": None, "coverage": None}
    try:
        return (VerdictRule.from_dict(stored["rule"]), stored["coverage"]) if stored["rule"] else (None, stored["coverage"])
    except (TypeError, KeyError) as error:  # of another version
        raise io.DamagedFile(path, error) from error


def verdict(logits: Sequence[float], names: Sequence[str], probability: float | None, rule: VerdictRule | None) -> ClassVerdict:
    """logits: (C,) of the classes `names`, "normal" first; probability: of being anomalous, calibrated as the rule's were."""
    values = np.asarray(logits, dtype=np.float64)
    share = class_probabilities(values[None, 1:])[0]
    order = np.argsort(-share, kind="stable")[:RANKED]
    decision = str(rule.verdicts(two_classes(np.array([probability])))[0]) if rule and probability is not None else None
    return ClassVerdict(decision, names[int(values.argmax())], [(names[place + 1], float(share[place])) for place in order])


def first_told(folder: Path) -> dict[str, ClassVerdict]:
    """By record id of the test records, from what evaluate wrote; empty where the model tells no classes."""
    path = folder / "class_predictions.parquet"
    rows = [row for row in io.read_table(path) if row["split"] == "test"] if path.is_file() else []
    if not rows:
        return {}
    rows = [row for row in rows if row["seed"] == rows[0]["seed"]]
    probability = _probabilities(folder, rows[0]["seed"])
    names, (rule, _) = [name.removeprefix(LOGIT) for name in rows[0] if name.startswith(LOGIT)], rule_of(folder)
    return {row["record_id"]: verdict([row[f"{LOGIT}{name}"] for name in names], names, probability.get(row["record_id"]), rule) for row in rows}


def _probabilities(folder: Path, seed: int) -> dict[str, Any]:
    rows = io.read_table(io.require(folder / "predictions.parquet"))
    return {row["record_id"]: row["probability"] for row in rows if (row["split"], row["seed"]) == ("test", seed)}
