"""VUS-ROC and VUS-PR beside the code of TSB-AD 1.5, in one run on one thread: the ratio of CPU seconds and the largest difference.

pip install --no-deps --target .venv-peers/references tsb-ad==1.5
PYTHONPATH=.venv-peers/references OMP_NUM_THREADS=1 python -m benchmarks.vus                100,000 steps, L = 100
python -m benchmarks.vus --steps 1000000                                                    where tsb-ad is not installed: ours alone
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np

from stages.metrics.vus import vus


def scene(steps: int, events: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise, lifted in events of 5 to 150 steps; (T,) each."""
    rng = np.random.default_rng(seed)
    label = np.zeros(steps, dtype=int)
    for start in rng.integers(0, steps - 150, events):
        label[start : start + rng.integers(5, 151)] = 1
    return rng.standard_normal(steps) + label, label


def cpu_seconds(work: Callable[[], tuple[float, float]], repeats: int) -> tuple[tuple[float, float], float]:
    """The result, and the best of `repeats`: other work on the machine can only add to it."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        taken.append(time.process_time() - started)
    return result, min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=40)
    parser.add_argument("--buffer", type=int, default=100, help="L")
    given = parser.parse_args()
    score, label = scene(given.steps, given.events)
    print(f"{given.steps} steps, {100 * label.mean():.1f} % of them in {given.events} events, L = {given.buffer}")
    ours, ours_s = cpu_seconds(lambda: tuple(vus(score, label, given.buffer)), repeats=5)
    print(f"{'ours':<8}{ours_s:10.4f} s   VUS-ROC {ours[0]:.12f}   VUS-PR {ours[1]:.12f}", flush=True)
    if importlib.util.find_spec("TSB_AD") is None:
        print("tsb-ad is not installed here: no ratio (see the top of this file)")
        return
    from TSB_AD.evaluation.basic_metrics import generate_curve

    theirs, theirs_s = cpu_seconds(lambda: generate_curve(label, score, given.buffer)[-2:], repeats=1)
    print(f"{'tsb-ad':<8}{theirs_s:10.4f} s   VUS-ROC {theirs[0]:.12f}   VUS-PR {theirs[1]:.12f}")
    print(f"{theirs_s / ours_s:.0f} x, largest difference {max(abs(a - b) for a, b in zip(ours, theirs)):.1e}")


if __name__ == "__main__":
    main()
