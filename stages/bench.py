"""What every model of one data set costs, from a decoded image to its score: time, memory, operations, parameters.

Reads fitted models and a few test images, writes metrics/bench/<dataset>.json. Timings differ from machine to machine and run to run, so they
lie apart from the metrics. All models run in one process, those on pixels first: `peak_rss_mb` is what that process held while the model
answered, Python, torch and the encoders built so far included. A transductive model has no latency, since no image has a score alone; its other figures are
those of a set of BATCH images. Where runs are named, only they are measured and the others keep their figures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import engine, errors, io
from stages.detectors import artefact
from stages.params import Params, RunEntry, load

BATCH = 16
ALONE = "transductive: it scores a set of images, so there is no time for one alone"


def main(dataset: str, *names: str) -> int:
    params = load()
    images, encoders = _images(dataset), {}
    path = Path("metrics", "bench", f"{dataset}.json")
    models: dict[str, Any] = io.read_json(path)["models"] if names and path.is_file() else {}
    with engine.thread_limit(params.compute.threads):
        runs = [params.entry("runs", name) for name in names] or [run for run in params.runs.values() if run.dataset == dataset]
        for run in sorted(runs, key=lambda run: params.encoders[run.encoder].kind != "pixels"):
            for row in params.rows(run.model):
                models[row] = _bench(params, _first_model(run, row, params.seeds(run)[0]), images, encoders)
                print(f"{dataset} {row}: {models[row]}")
    from stages.encoders.encoder import resolve_device
    from stages.metrics.footprint import machine

    about = machine(resolve_device(params.compute.device), params.compute.threads)
    io.write_json(path, {"dataset": dataset, "machine": about, "models": models})
    return errors.OK


def _bench(params: Params, folder: Path | None, images: list[Any], encoders: dict[str, Any]) -> dict[str, Any]:
    if folder is None:
        return {"refused": "no fitted model"}
    import torch

    from stages.metrics.footprint import flops, peak_memory
    from stages.metrics.latency import measure
    from stages.serving.pipeline import Pipeline

    pipeline = Pipeline.load(folder, params.compute.device, params.compute.threads, params.backbones_folder, encoders)
    rule, synchronise = params.bench, torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    transductive, many = pipeline.detector.transductive, (images * BATCH)[:BATCH]  # a data set of fewer test images shows some of them again
    single = None if transductive else measure(lambda: pipeline(images[:1]), rule.warmup, rule.repeats, rule.seconds, synchronise)
    batch = measure(lambda: pipeline(many), rule.warmup, rule.repeats, rule.seconds, synchronise)
    memory = peak_memory(lambda: pipeline(many))
    shown = many if transductive else images[:1]
    pixels = pipeline.pixels(shown)
    features = pipeline.features(pixels)
    total, trainable = pipeline.parameters()
    return {
        "latency_ms_p50": round(single.p50_ms, 3) if single else None,
        "latency_ms_p95": round(single.p95_ms, 3) if single else None,
        "throughput_per_s": round(1000 * BATCH / batch.p50_ms, 2),
        "batch": BATCH,
        "warmup": (single or batch).warmup,
        "repeats": (single or batch).repeats,
        "batch_warmup": batch.warmup,
        "batch_repeats": batch.repeats,
        "parameters": total,
        "trainable_parameters": trainable,
        "flops": flops(lambda: (pipeline.encoder.eager(pixels), pipeline.detector.score(features))) // len(shown),
        "peak_rss_mb": round(memory.rss_mb, 1),
        "peak_vram_mb": None if memory.vram_mb is None else round(memory.vram_mb, 1),
        **({"reason": ALONE} if transductive else {}),
    }


def _images(dataset: str) -> list[Any]:
    """The first test images, decoded."""
    from stages.datasets.images import read_image
    from stages.datasets.samples import root_of

    root = root_of(Path("data", dataset, "dataset.json"))
    paths = {row["sample_id"]: row["image_path"] for row in io.read_table(Path("data", dataset, "samples.parquet"))}
    tests = [sample["sample_id"] for sample in io.read_json(Path("data", dataset, "manifest.json"))["samples"] if sample["split"] == "test"]
    return [read_image(root / paths[sample]) for sample in tests[:BATCH]]


def _first_model(run: RunEntry, row: str, seed: int) -> Path | None:
    """The first category's model, or None where it was refused."""
    base = artefact.folder(run.dataset, run.model, row, "*", seed)
    return next(iter(sorted(path.parent for path in Path().glob(f"{base.as_posix()}/config.json"))), None)


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(*sys.argv[1:])))
