"""What every detector of records costs on one data set: time, memory, operations, parameters.

Reads fitted detectors and stored tokens, writes metrics/bench/<dataset>.json. Latency is that of one record, throughput that of up to BATCH at once,
both from tokens in memory: what the encoders cost lies before it, once a record, whatever the model. Timings differ from machine to machine and run to
run, so they lie apart from the metrics.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import engine, errors, io
from stages.datasets.record_sets import open_split
from stages.fusion import artefact
from stages.params import Params, load

if TYPE_CHECKING:
    from stages.datasets.records import Records

BATCH = 256


def main(dataset: str) -> int:
    from stages.metrics.footprint import machine
    from stages.training import Run

    params = load()
    task, models = params.record_task, {}
    device = Run(seed=0, device=params.compute.device).device
    with engine.thread_limit(params.compute.threads):
        for run in task.runs.values():
            if run.dataset == dataset:
                for row, entry in task.rows(run.model).items():
                    place = artefact.folder(dataset, run.model, row, task.seeds(run)[0])
                    fitted = (place / "config.json").is_file()
                    models[row] = _bench(params, place, _tested(dataset, entry.modalities).to(device)) if fitted else {"refused": "no fitted model"}
                    print(f"{dataset} {row}: {models[row]}")
    about = machine(device.type, params.compute.threads)
    io.write_json(Path("metrics", "bench", f"{dataset}.json"), {"dataset": dataset, "machine": about, "models": models})
    return errors.OK


def _tested(dataset: str, modalities: list[str] | None) -> Records:
    """The first test records, as a detector of these modalities is shown them."""
    test = open_split(dataset, "test", modalities=modalities)
    if not test.samples:
        raise errors.Missing(f"no test record of {dataset} is in features/{dataset}: nothing to time. Look at the split in its manifest.json")
    return test.take(range(min(BATCH, test.samples)))


def _bench(params: Params, place: Path, records: Records) -> dict[str, Any]:
    from stages.metrics.costs import costs

    device, rule = records.label.device, params.bench
    detector = artefact.load(place).to(device).requires_grad_(False)  # counting operations would follow gradients
    one = records.take([int(records.present.sum(1).argmax())])  # of those with the most modalities the first
    calls = (lambda: detector.score(one)), (lambda: detector.score(records))
    return costs(detector, *calls, records.samples, rule.warmup, rule.repeats, rule.seconds, device)


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(*sys.argv[1:])))
