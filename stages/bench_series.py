"""What every detector of signals costs on one data set: time, memory, operations, parameters.

Reads fitted detectors and test steps, writes metrics/bench/<dataset>.json. Latency is that of one step as a stream would bring it: the detector scores
the steps that the new one's score depends on. Throughput is that of STEPS steps at once. Timings differ from machine to machine and run to run, so they
lie apart from the metrics.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import engine, errors, io
from stages.datasets.segments import categories_of, open_segments
from stages.params import Params, load
from stages.timeseries import artefact

STEPS = 10_000


def main(dataset: str) -> int:
    from stages.metrics.footprint import machine
    from stages.training import Run

    params = load()
    category = categories_of(dataset)[0]
    models: dict[str, Any] = {}
    with engine.thread_limit(params.compute.threads):
        for run in params.signals.runs.values():
            if run.dataset == dataset:
                for row in params.signals.rows(run.model):
                    place = artefact.folder(dataset, run.model, row, category, params.signals.seeds(run)[0])
                    models[row] = _bench(params, place, category) if (place / "config.json").is_file() else {"refused": "no fitted model"}
                    print(f"{dataset} {row}: {models[row]}")
    about = machine(Run(seed=0, device=params.compute.device).device.type, params.compute.threads)
    io.write_json(Path("metrics", "bench", f"{dataset}.json"), {"dataset": dataset, "machine": about, "models": models})
    return errors.OK


def _bench(params: Params, place: Path, category: str) -> dict[str, Any]:
    import torch

    from stages.metrics.costs import costs
    from stages.training import Run

    device, rule = Run(seed=0, device=params.compute.device).device, params.bench
    detector = artefact.load(place).to(device)
    longest = max(open_segments(place.parts[1], category, "test"), key=lambda segment: segment.steps)
    steps = torch.from_numpy(longest.values[:STEPS]).to(device)
    one = steps[: detector.past + detector.future + 1]
    calls = (lambda: detector.score(one)), (lambda: detector.score(steps))
    return costs(detector, *calls, len(steps), rule.warmup, rule.repeats, rule.seconds, device) | {"waits_steps": detector.future}


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(*sys.argv[1:])))
