"""What a search may try: for each option of a detector, the values around its value now, read from the constructor's signature.

A number is drawn log-uniformly from a quarter to four times its value now; a share near one (variance, momentum) by what it lacks of one; a
literal from its choices; layers from the contiguous runs of those that are stored. What only buys quality with time, or says which networks
and images take part, is not searched: a search would always ask for more of it. A file given by the user is the whole space instead.

Odd trials are drawn from the whole space, even ones are steps from the best so far. They alternate, rather than follow each other in two
halves, so that the sequence does not depend on how long a search may last: stopped and continued, it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from stages.params import ParamsError, nearest
from stages.seed import numpy_generator

Options = dict[str, Any]  # JSON values: a tuple of layers is a list

NOT_SEARCHED = {
    "schedule: more of it costs more": ("epochs", "steps", "patience", "batch_size", "fibre_batch_size", "warmup", "easy_steps"),
    "cost: time and memory, hardly the scores": ("search", "memory_gb", "bank_gb", "max_points"),
    "another network or another task": (
        "backbone", "weights", "weights_seed", "teacher_weights", "vq_weights", "size", "extra", "multi_class", "supervised",
    ),
}  # fmt: skip
SHARES = ("clean", "dropout", "momentum", "opacity", "perlin_threshold", "seen", "turned", "variance")  # and *_ratio, *_share: at most 1
REACH = 4.0  # how far a number goes from its value now, as a factor
STEP = 0.2  # of a range, the standard deviation of a step from the best
DRAWS = 200  # in vain, before a space counts as used up


class Choice(NamedTuple):
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator, near: Any = None) -> Any:
        others = [value for value in self.values if value != near] or list(self.values)
        return others[int(rng.integers(len(others)))]


class Range(NamedTuple):
    """Numbers from low to high. log: equal factors are equally likely. from_one: that holds for what they lack of one."""

    low: float
    high: float
    integer: bool = False
    log: bool = True
    from_one: bool = False

    def draw(self, rng: np.random.Generator, near: float | None = None) -> float:
        low, high = sorted((self._place(self.low), self._place(self.high)))
        place = rng.uniform(low, high) if near is None else self._place(near) + rng.normal(0, STEP * (high - low))
        value = self._value(float(np.clip(place, low, high)))
        return round(value) if self.integer else float(np.clip(float(f"{value:.3g}"), self.low, self.high))

    def _place(self, value: float) -> float:
        return float(np.log(1 - value if self.from_one else value)) if self.log else value

    def _value(self, place: float) -> float:
        value = float(np.exp(place)) if self.log else place
        return 1 - value if self.from_one else value


Space = dict[str, Choice | Range]


def space_of(detector: type, now: Options, layers: Sequence[str]) -> Space:
    """The space around `now`, all options of the detector. layers: what the store holds, in the order of the network."""
    hints = get_type_hints(detector.__init__)
    left_out = {name for names in NOT_SEARCHED.values() for name in names}
    found = {name: _around(name, hints.get(name), value, layers) for name, value in now.items() if name not in left_out}
    return {name: option for name, option in found.items() if option is not None}


def read_space(path: Path, known: Sequence[str]) -> Space:
    """A space that somebody wrote: `option: [values]` or `option: {low, high, log}`. known: the options of the detector."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(path)
    except (YAMLError, ValueError) as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ParamsError(
            f"{path} must hold a table of options, e.g. `coreset_ratio: {{low: 0.01, high: 0.1}}` or `layer: [layer2, layer3]`"
        )
    for name in content:
        if name not in known:
            raise ParamsError(f"{path}: the detector has no option {name!r}{nearest(str(name), known)}")
    return {name: _written(path, name, value) for name, value in content.items()}


def propose(space: Space, now: Options, best: Options, tried: Sequence[Options], number: int, seed: int) -> Options | None:
    """What trial `number` changes of `now`; None where nothing untried was found. best, tried: changes of earlier trials."""
    rng = numpy_generator(seed, "tune", number)
    for _ in range(DRAWS):
        drawn = _anywhere(space, now, rng) if number % 2 else _beside(space, now, best, rng)
        if drawn not in tried:
            return drawn
    return None


def _anywhere(space: Space, now: Options, rng: np.random.Generator) -> Options:
    """About half of the options are drawn anew, at least one: a draw of all of them seldom leaves anything that worked."""
    chosen = rng.random(len(space)) < 0.5
    chosen[rng.integers(len(space))] = True
    drawn = {name: option.draw(rng) for (name, option), chance in zip(space.items(), chosen, strict=True) if chance}
    return _changes(drawn, now)


def _beside(space: Space, now: Options, best: Options, rng: np.random.Generator) -> Options:
    """One or two options a step from the best, or one of its changes undone: what does not help should not be in the answer."""
    if best and rng.random() < 1 / 3:
        undone = list(best)[int(rng.integers(len(best)))]
        return {name: value for name, value in best.items() if name != undone}
    names = rng.permutation(list(space))[: 1 + int(rng.random() < 0.5)].tolist()
    current = now | best
    steps = {name: space[name].draw(rng, current[name] if _inside(space[name], current[name]) else None) for name in names}
    return _changes(best | steps, now)


def _inside(option: Choice | Range, value: Any) -> bool:
    return isinstance(option, Choice) or (isinstance(value, int | float) and option.low <= value <= option.high)


def _changes(options: Options, now: Options) -> Options:
    return {name: options[name] for name in sorted(options) if options[name] != now[name]}


def _around(name: str, hint: Any, value: Any, layers: Sequence[str]) -> Choice | Range | None:
    """The values around one; None where there is nothing to vary: another text, null, and zero, which has no multiples."""
    if name == "layer":
        return _choice(layers, value)
    if name == "layers":
        return _choice([list(layers[i:j]) for i in range(len(layers)) for j in range(i + 1, len(layers) + 1)], value)
    if get_origin(hint) is Literal:
        return _choice(get_args(hint), value)
    if isinstance(value, bool):
        return Choice((False, True))
    if not isinstance(value, int | float) or value <= 0:
        return None
    if isinstance(value, int):
        return Range(max(1, round(value / REACH)), round(value * REACH), integer=True)
    if value > 1 or not (name in SHARES or name.endswith(("_ratio", "_share"))):
        return Range(value / REACH, value * REACH)
    if 0.5 < value < 1:
        return Range(max(0.0, 1 - REACH * (1 - value)), 1 - (1 - value) / REACH, from_one=True)
    return Range(value / REACH, min(1.0, value * REACH))


def _choice(values: Sequence[Any], now: Any) -> Choice | None:
    """One of `values`; none where there is but one, or where what is in use does not come from among them."""
    return Choice(tuple(values)) if len(values) > 1 and now in values else None


def _written(path: Path, name: str, value: Any) -> Choice | Range:
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        low, high, log = value["low"], value["high"], value.get("log", False)
        numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
        if numbers and low < high and (low > 0 or not log):
            return Range(low, high, integer=isinstance(low, int) and isinstance(high, int), log=bool(log))
    raise ParamsError(f"{path}: {name} must be a list of values, or {{low, high, log}} with low < high (above 0 where log), got {value!r}")


def as_json(options: Mapping[str, Any]) -> Options:
    """Options as JSON would give them back, so that what is read and what is drawn compare."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
