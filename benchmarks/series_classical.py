"""What the classical detectors of signals cost: processor seconds of one thread for 30,000 steps of 8 variables to learn from and as many to score.

    OMP_NUM_THREADS=1 python -m benchmarks.series_classical

prints the table of docs/series_models.md. A row of a stream is one score of the steps that it depends on; processor time does not mind what else
runs on the machine, as wall time does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.signal import lfilter

from stages import timeseries
from stages.datasets.recordings import Segment
from stages.training import Run

STEPS, VARIABLES, REPEATS = 30_000, 8, 50


def main() -> None:
    torch.set_num_threads(1)
    train, test = (Segment("made-up", 0, made(seed), None) for seed in (1, 2))
    import sklearn.cluster
    import sklearn.ensemble  # noqa: F401  importing is no part of learning

    print("| row | learn, s | score, s | a row of a stream, ms | stored, MB |\n| --- | ---: | ---: | ---: | ---: |")
    for name in timeseries.known():
        if name.startswith("classical."):
            print(row(name, train, torch.from_numpy(test.values)), flush=True)


def made(seed: int) -> np.ndarray:
    """(STEPS, VARIABLES) slow noise, mixed so that variables are correlated, and a little fast noise."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((3, VARIABLES))
    slow = lfilter([0.1], [1, -0.95], random.standard_normal((STEPS, 3)), axis=0)
    return (slow @ mixing + 0.2 * random.standard_normal((STEPS, VARIABLES))).astype(np.float32)


def row(name: str, train: Segment, test: torch.Tensor) -> str:
    detector = timeseries.build(name, {}, at=())
    learn = seconds(lambda: detector.fit([train], [], Run(seed=0, quiet=True)))
    score = seconds(lambda: detector.score(test))
    reach = test[: detector.past + 1 + detector.future]
    one = seconds(lambda: [detector.score(reach) for _ in range(REPEATS)]) / REPEATS
    stored = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    return f"| `{name}` | {learn:.2f} | {score:.2f} | {1000 * one:.2f} | {stored / 1e6:.2f} |"


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
