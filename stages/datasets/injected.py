"""Anomalies put into signals: thirteen kinds, where they go, and a record of each.

Seven kinds add something to some metrics, so that a large enough value gives them away; six leave the values of every variable in their usual
range and break what ties them to time and to each other. Each kind is a function from a `Scene` to what is added at gain 1; the gain scales it.
`frozen_sensor` and `dropout` know no degrees: a sensor is dead at any gain. `seasonal_break` is played by the generator, whose clock runs faster
there. Random numbers are drawn by purpose: a kind that is left out shifts none of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.recordings import Region, Values
from stages.seed import numpy_generator

FASTER = 0.6  # seasonal_break: periods pass 1.6 times as fast at gain 1
APART = 50  # steps between two regions of one kind, beyond the longest of the kind
Array = NDArray[np.float64]


class Scene(NamedTuple):
    """What an effect may look at: the whole normal recording and the place in it."""

    values: Array  # (T, V), normal
    variables: tuple[str, ...]
    start: int
    stop: int
    draw: np.random.Generator

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def ramp(self) -> Array:
        """(L,) rising from above 0 to 1."""
        return np.arange(1, self.steps + 1) / self.steps

    @property
    def nothing(self) -> Array:
        return np.zeros((self.steps, len(self.variables)))

    def now(self, variable: int) -> Array:
        return self.values[self.start : self.stop, variable]

    def any_variable(self, first: int = 0) -> int:
        """A random variable from `first` on, or the only one there is."""
        return int(self.draw.integers(min(first, len(self.variables) - 1), len(self.variables)))

    def add(self, shape: float | Array, **ranges: tuple[float, float]) -> Array:
        """(L, V): for each variable named, `shape` times a number drawn from its range."""
        delta = self.nothing
        for variable, (low, high) in ranges.items():
            delta[:, self.variables.index(variable)] = shape * self.draw.uniform(low, high)
        return delta


def spike(scene: Scene) -> Array:
    """A burst of load."""
    return scene.add(1, cpu=(0.3, 0.5), network=(0.4, 0.6), response=(0.3, 0.5), errors=(0.2, 0.4), queue=(0.3, 0.5))


def memory_leak(scene: Scene) -> Array:
    """Memory fills up, then the disk swaps and threads wait."""
    return scene.add(scene.ramp**0.7, memory=(0.3, 0.5), disk=(0.2, 0.4), threads=(0.1, 0.3))


def cpu_saturation(scene: Scene) -> Array:
    """CPU at its limit while a queue builds up."""
    delta = scene.add(1, threads=(0.3, 0.5), response=(0.2, 0.4)) + scene.add(scene.ramp, queue=(0.3, 0.5))
    cpu = scene.variables.index("cpu")
    delta[:, cpu] = np.clip(scene.now(cpu) + scene.draw.uniform(0.4, 0.6), 0.7, 1) - scene.now(cpu)
    return delta


def network_congestion(scene: Scene) -> Array:
    """A full line: slow answers and errors while the CPU is at ease."""
    return scene.add(1, network=(0.4, 0.6), response=(0.3, 0.5), errors=(0.15, 0.35), queue=(0.2, 0.4))


def cascading_failure(scene: Scene) -> Array:
    """Errors first; answers a quarter and the queue a third of the region later."""

    def rising(after: float) -> Array:
        return np.sqrt(np.clip((scene.ramp - after) / (1 - after), 0, 1))

    late = scene.add(rising(1 / 4), response=(0.3, 0.5)) + scene.add(rising(1 / 3), queue=(0.3, 0.5))
    return scene.add(rising(0), errors=(0.4, 0.6)) + late + scene.add(1, cpu=(0.2, 0.4))


def resource_contention(scene: Scene) -> Array:
    """Threads wait for each other in three waves."""
    waves = (1 - np.cos(2 * np.pi * 3 * scene.ramp)) / 2
    return scene.add(waves, threads=(0.3, 0.5), queue=(0.3, 0.5), cpu=(0.2, 0.4)) + scene.add(1, memory=(0.15, 0.3))


def point_spike(scene: Scene) -> Array:
    """A few steps, two to eight variables."""
    variables = len(scene.variables)
    chosen = scene.draw.permutation(variables)[: scene.draw.integers(min(2, variables), min(8, variables) + 1)]
    delta = scene.nothing
    delta[:, chosen] = scene.draw.uniform(0.3, 0.6, len(chosen))
    return delta


def decorrelation(scene: Scene) -> Array:
    """One variable says what it said 60 to 300 steps before (or after, where there is no before)."""
    variable, shift = scene.any_variable(first=1), int(scene.draw.integers(60, 301))
    source = scene.start - shift if scene.start >= shift else min(scene.start + shift, len(scene.values) - scene.steps)
    return _column(scene, variable, scene.values[source : source + scene.steps, variable] - scene.now(variable))


def contextual(scene: Scene) -> Array:
    """One variable at a level that is usual at other times."""
    variable, offset = _elsewhere(scene)
    return _column(scene, variable, np.full(scene.steps, offset))


def trend_shift(scene: Scene) -> Array:
    """As `contextual`, but going there slowly."""
    variable, offset = _elsewhere(scene)
    return _column(scene, variable, scene.ramp * offset)


def seasonal_break(scene: Scene) -> Array:
    return scene.nothing


def frozen_sensor(scene: Scene) -> Array:
    """One variable stays at its last value."""
    variable = scene.any_variable()
    return _column(scene, variable, scene.values[max(scene.start - 1, 0), variable] - scene.now(variable))


def dropout(scene: Scene) -> Array:
    """One variable says nothing."""
    return _column(scene, scene.any_variable(), np.full(scene.steps, np.nan))


def _column(scene: Scene, variable: int, change: Array) -> Array:
    delta = scene.nothing
    delta[:, variable] = change
    return delta


def _elsewhere(scene: Scene) -> tuple[int, float]:
    """A variable and the way to a level half of its ranks away, inside the range that holds 98 % of its values.

    Drawn among the variables that go at least two of the standard deviations that they have within the region, else the one that goes farthest:
    where a variable already spans its range there, no level of it is wrong.
    """
    sample, now = scene.values[:: max(1, len(scene.values) // 4000)], scene.values[scene.start : scene.stop]
    centre = np.median(now, 0)
    ranks = ((sample < centre).mean(0) + 0.5) % 1
    level = np.array([np.quantile(column, rank) for column, rank in zip(sample.T, ranks)])
    (low, high), (lowest, highest) = (np.quantile(part, shares, axis=0) for part, shares in ((sample, (0.01, 0.99)), (now, (0.05, 0.95))))
    offset = np.clip(level - centre, np.minimum(low - lowest, 0), np.maximum(high - highest, 0))
    far = np.abs(offset) / np.maximum(now.std(0), 1e-12)
    candidates = np.flatnonzero(far >= min(2, far.max()))
    variable = int(scene.draw.choice(candidates))
    return variable, float(offset[variable])


class Kind(NamedTuple):
    effect: Callable[[Scene], Array]
    shortest: int  # steps
    longest: int
    gap: int  # mean steps between two of the kind, before the interval scale
    scaled: bool = True  # by the gain


ADDING = {
    "spike": Kind(spike, 10, 25, 3500),
    "memory_leak": Kind(memory_leak, 80, 150, 7000),
    "cpu_saturation": Kind(cpu_saturation, 40, 80, 4500),
    "network_congestion": Kind(network_congestion, 30, 60, 4000),
    "cascading_failure": Kind(cascading_failure, 60, 120, 6500),
    "resource_contention": Kind(resource_contention, 35, 65, 4500),
    "point_spike": Kind(point_spike, 3, 5, 4000),
}
KEEPING = {  # the usual range of every variable
    "decorrelation": Kind(decorrelation, 60, 120, 7000),
    "contextual": Kind(contextual, 40, 80, 6000),
    "seasonal_break": Kind(seasonal_break, 100, 200, 9000),
    "trend_shift": Kind(trend_shift, 100, 200, 9000),
    "frozen_sensor": Kind(frozen_sensor, 40, 100, 7000, scaled=False),
    "dropout": Kind(dropout, 10, 40, 6000, scaled=False),
}
KINDS = ADDING | KEEPING
ANYWHERE = ("point_spike", "decorrelation", "contextual", "trend_shift", "frozen_sensor", "dropout")  # need no metric by name


class Place(NamedTuple):
    start: int
    stop: int
    kind: str
    number: int  # of its kind, from 0


def place(steps: int, kinds: Iterable[str], seed: int, interval_scale: float) -> tuple[list[Place], dict[str, int]]:
    """Where anomalies go in `steps` steps, in time order, and how many of each kind were dropped because an earlier one was there.

    Gaps between two of a kind are exponential with mean gap x interval_scale, after the longest of the kind and APART steps more, which is also what
    lies between a region and the one before it, whatever its kind.
    Dropping favours short kinds, which is why it is counted.
    """
    wanted = sorted(found for kind in kinds for found in _wanted(steps, kind, seed, interval_scale))
    kept: list[Place] = []
    dropped: Counter[str] = Counter()
    for found in wanted:
        if kept and found.start < kept[-1].stop + KINDS[found.kind].longest + APART:
            dropped[found.kind] += 1
        else:
            kept.append(found)
    return kept, dict(sorted(dropped.items()))


def _wanted(steps: int, name: str, seed: int, interval_scale: float) -> Iterator[Place]:
    kind, draw = KINDS[name], numpy_generator(seed, "places", name)
    start, number = 0, 0
    while True:
        start += kind.longest + APART + int(draw.exponential(kind.gap * interval_scale))
        stop = start + int(draw.integers(kind.shortest, kind.longest + 1))
        if stop > steps:
            return
        yield Place(start, stop, name, number)
        start, number = stop, number + 1


def inject(values: Array, variables: Sequence[str], places: Sequence[Place], gain: float, seed: int) -> tuple[Values, tuple[Region, ...]]:
    """The normal recording with an anomaly in each place, (T, V) float32, and what was done there."""
    changed, regions = values.copy(), []
    for at in places:
        kind = KINDS[at.kind]
        draw = numpy_generator(seed, "effect", at.kind, at.number)
        delta = kind.effect(Scene(values, tuple(variables), at.start, at.stop, draw)) * (gain if kind.scaled else 1)
        changed[at.start : at.stop] += delta
        regions.append(_region(at, variables, delta))
    return changed.astype(np.float32), tuple(regions)


def _region(at: Place, variables: Sequence[str], delta: Array) -> Region:
    shown = tuple(name for name, moved in zip(variables, (delta != 0).any(0)) if moved)
    largest = float(np.abs(np.nan_to_num(delta)).max())
    return Region(at.start, at.stop, at.kind, shown, round(largest, 6) if largest else None)


def clock(steps: int, places: Sequence[Place], gain: float) -> Array:
    """(T,) the time that periods go by: one a step, more in the regions of seasonal_break. It jumps nowhere."""
    pace = np.ones(steps)
    for at in places:
        if at.kind == "seasonal_break":
            pace[at.start : at.stop] += FASTER * gain
    return np.cumsum(pace)
