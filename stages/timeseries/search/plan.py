"""What a search is made of: everything that changes a figure in it, and nothing that does not."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from stages.timeseries.search.grid import GRIDS, Point, points

SMALL_BATCH = 32  # for which the learning rate of 1e-3 is meant


class Stage(NamedTuple):
    """The signal is cut into three blocks in order of time: to learn from, to choose by, and to report."""

    steps: int  # of the whole signal
    train: float  # share of the steps
    val: float  # share; the rest is test
    epochs: int
    batch_size: int
    dropout: float = 0.0  # no window is seen often enough to be learnt by heart, and on a CPU drawing it is a third of the time

    @property
    def learning_rate(self) -> float:
        """1e-3 at a batch of 32, growing with the cube root of the batch: 2e-3 at 256."""
        return 1e-3 * (self.batch_size / SMALL_BATCH) ** (1 / 3)


FAITHFUL = {"batch_size": SMALL_BATCH, "dropout": 0.1}  # as the grid was first searched
QUICK = Stage(200_000, 0.3, 0.2, 1, 64)  # on a CPU larger batches save no time, and cost steps
FULL = Stage(440_000, 0.5, 0.1, 2, 64)


class Plan(NamedTuple):
    """Two searches with equal plans and equal code give equal figures, whatever their order, their workers and their interruptions."""

    grid: str = "seed"
    regime: str = "weak"
    gain: float = 0.3  # strength of the anomalies: 1, .3 and .15 are easy, medium and hard
    seed: int = 0  # of the training
    data_seed: int = 100  # of the signals; the data set `server` has others
    interval_scale: float = 3.5  # stretches the gaps between anomalies: 3 % of the steps
    device: str = "cpu"
    window: int = 100
    stride: int = 10  # between windows that are learnt from
    judged: tuple[int, int, int] = (1200, 300, 500)  # windows: pure normal, disturbing normal, anomaly
    quick: Stage = QUICK
    full: Stage = FULL

    @property
    def points(self) -> list[Point]:
        return points(self.grid, self.regime)

    @property
    def patch_sizes(self) -> list[int]:
        """Steps of a patch, for every number of patches in the grid."""
        return sorted(self.window // patches for patches in GRIDS[self.grid]["num_patches"])

    def stage(self, name: str) -> Stage:
        return {"quick": self.quick, "full": self.full}[name]

    def as_json(self) -> dict[str, Any]:
        stages = {name: self.stage(name)._asdict() for name in ("quick", "full")}
        return {**self._asdict(), "judged": list(self.judged), **stages}

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Self:
        stages = {name: Stage(**content[name]) for name in ("quick", "full")}
        return cls(**{**content, "judged": tuple(content["judged"]), **stages})
