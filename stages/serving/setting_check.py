"""Facts that a prediction is given, held against the settings that its model has seen: a warning, or on request a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import errors
from stages.datasets import setting_range
from stages.datasets.setting_range import Range
from stages.metrics.verdicts import REVIEW
from stages.params import nearest

if TYPE_CHECKING:
    from stages.serving.record_model import RecordModel
    from stages.serving.record_predict import RecordVerdict

UNKNOWN = "was fitted before the ranges of settings were kept, so whether these facts lie within is not known. Train it again"


class Check(NamedTuple):
    """What is held against what, for all records of one call."""

    known: dict[str, Range] | None  # None of a model that does not know
    given: Mapping[str, str | float]  # of every record that says nothing else
    refuse: bool


def check_of(model: RecordModel, facts: Sequence[str] = (), refuse: bool = False) -> Check:
    """facts: NAME=VALUE each. Raises UserError for a setting that the model does not know, a number that is none, a refusal that has nothing to go by."""
    known = model.settings()
    if refuse and not known:
        why = UNKNOWN if known is None else "has seen no settings, as its data set has no control that names facts"
        raise errors.UserError(f"--refuse-outside: {model.name} {why}")
    return Check(known, dict(_parsed(text, known, model.name) for text in facts), refuse)


def _parsed(text: str, known: Mapping[str, Range] | None, model: str) -> tuple[str, str | float]:
    name, sign, value = text.partition("=")
    if not (sign and name and value):
        raise errors.UserError(f"--fact takes NAME=VALUE, as in current_a=190; got {text!r}")
    if known is not None and name not in known:
        what = f"has seen no setting {name!r}{nearest(name, list(known))}" if known else "has seen no settings: leave --fact out"
        raise errors.UserError(f"{model} {what}")
    if known is not None and "levels" in known[name]:
        return name, value
    try:
        return name, float(value)
    except ValueError:
        if known is None:
            return name, value
        raise errors.UserError(f"--fact {name} is a number, in training {setting_range.as_text(known[name])}; got {value!r}") from None


def held(verdict: RecordVerdict, check: Check, own: Mapping[str, str | float]) -> RecordVerdict:
    """The verdict with what lies outside. own: the facts that the record's file says, which count more. Unchanged where nothing is known of its settings."""
    facts = {**check.given, **own}
    if not facts or check.known == {}:
        return verdict
    if check.known is None:
        return verdict._replace(warnings=[*verdict.warnings, f"{verdict.model} {UNKNOWN}"])
    found = setting_range.outside(check.known, facts)
    lines = [f"{one.fact} is {setting_range.shown(one.value)}, in training it was {setting_range.as_text(one.seen)}" for one in found]
    told: dict[str, Any] = {"outside": [one._asdict() for one in found], "warnings": [*verdict.warnings, *lines]}
    if found and check.refuse and verdict.score is not None:
        told |= {"verdict": REVIEW} | ({"decision": REVIEW} if verdict.decision is not None else {})
    return verdict._replace(**told)
