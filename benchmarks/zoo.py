"""All twenty detectors with their `cpu` schedule on images that none of them was tuned on: docs/results.md and docs/results_solar.md.

The schedules were chosen on the images of `parts` with seed 0; here they meet generated parts of another seed, or the photographs of `solar`. Every verb
of the pipeline runs as it does for a user, in a folder of its own. What takes long is training: about an hour on two cores.

    python -m benchmarks.zoo --out docs/results.md
    python -m benchmarks.zoo --dataset solar --out docs/results_solar.md
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import io, params
from stages.detectors import zoo
from stages.serving.leaderboard import Row, cell, leaderboard

ROOT = Path(__file__).parent.parent
TRIVIAL = "trivial"
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO 0.3"}


def settings(dataset: str, seed: int, images_seed: int, backbones: Path, methods: list[str]) -> dict[str, Any]:
    """The content of params.yaml: one data set, the trivial rows, and each method under its own name."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    entry = content["datasets"][dataset]
    entry |= {"source": (ROOT / entry["source"]).as_posix()} | ({"seed": images_seed} if "seed" in entry else {})
    trivial = content["models"][TRIVIAL]
    content |= {
        "datasets": {dataset: entry},
        "protocol": content["protocol"] | {"seeds": [seed]},
        "backbones": backbones.resolve().as_posix(),
        "encoders": {},
        "extracts": {},
        "models": {TRIVIAL: trivial},
        "runs": {},
    }
    for name, detector in [(TRIVIAL, None), *((slug(detector), detector) for detector in methods)]:
        first = next(name for name, one in zoo.zoo().configurations.items() if detector in (None, one.detector))
        entries = zoo.entries(first if detector else "autoencoder", "cpu")
        encoder = entries.pixels_name if entries.encoder["kind"] == zoo.PIXELS else entries.encoder_name
        content["encoders"] |= {entries.pixels_name: entries.pixels, encoder: entries.encoder}
        if detector:
            content["models"][name] = entries.model
        code = f"stages/detectors/{detector.replace('.', '/')}.py" if detector else "stages/detectors/trivial"
        run = {"dataset": dataset, "model": name, "encoder": encoder, "pixels": entries.pixels_name}
        content["runs"][f"{dataset}-{name}"] = run | {"code": (ROOT / code).as_posix(), "maths": (ROOT / code).as_posix()}
    for encoder, entry in content["encoders"].items():
        pixels = zoo.pixels_name(entry["image_size"])
        reads = f"data/{dataset}/samples.parquet" if encoder == pixels else f"features/{dataset}/{pixels}"
        code = (ROOT / "stages/encoders" / zoo.code_of(entry)).as_posix()
        content["extracts"][f"{dataset}-{encoder}"] = {"dataset": dataset, "encoder": encoder, "reads": reads, "code": code}
    return content


def slug(detector: str) -> str:
    return detector.split(".")[1].replace("_", "-")


def run_all(folder: Path, content: dict[str, Any]) -> dict[str, float]:
    """Run every verb in `folder`; one that fails leaves its model without a row. Returns the seconds that `train` took, by model."""
    [dataset], seconds = content["datasets"], {}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(content, file)
    encoders = sorted(content["encoders"], key=lambda name: not name.startswith(zoo.PIXELS))
    verb(folder, "prepare", dataset)
    for encoder in encoders:
        verb(folder, "extract", dataset, encoder)
    verb(folder, "manifest", dataset)
    for run, entry in content["runs"].items():
        start = time.perf_counter()
        verb(folder, "train", run)
        seconds[entry["model"]] = time.perf_counter() - start
        verb(folder, "evaluate", run)
    verb(folder, "bench", dataset)
    return seconds


def verb(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", f"stages.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        print(f"{' '.join(arguments)} ended with exit code {done.returncode}", file=sys.stderr)


def beaten(row: Row, trivial: list[Row], result: dict[str, dict[str, Any]]) -> str:
    """On how many categories the model's image AUROC is above that of every trivial baseline."""
    own = result[row.model]["categories"]

    def auroc(model: str, category: str) -> float:
        return result[model]["categories"][category]["image_auroc"]["value"]

    won = [category for category in own if all(auroc(row.model, category) > auroc(other.model, category) for other in trivial)]
    return f"{len(won)} of {len(own)}"


def page(folder: Path, seconds: dict[str, float], arguments: argparse.Namespace) -> str:
    import torch

    found = params.load(folder / "params.yaml")
    rows = leaderboard(found, folder)[arguments.dataset]
    trivial_names = set(found.models[TRIVIAL].rows)
    trivial = [row for row in rows if row.model in trivial_names]
    result = {}
    for path in sorted((folder / "metrics" / arguments.dataset).glob("*.json")):
        content = io.read_json(path)
        result |= content.get("rows", {content["model"]: content})
    lines = [
        HEAD.format(
            images=IMAGES[arguments.dataset].format(seed=arguments.images_seed),
            seed=arguments.seed,
            machine=f"{platform.machine()}, 2 processes of one thread, torch {torch.__version__}",
        )
    ]
    titles = [
        "#",
        "model",
        *METRICS.values(),
        "beats every trivial row on",
        "train s",
        "ms / image",
        "M values",
        "weights",
        "also learnt from",
    ]
    lines += [f"| {' | '.join(titles)} |", "| ---: | --- |" + " ---: |" * (len(METRICS) + 4) + " --- | --- |"]
    for row in rows:
        if row.refused:
            lines.append(f"| | {row.model} | {row.refused} |" + " |" * (len(titles) - 3))
            continue
        values = [cell(row.metrics.get(name)) for name in METRICS]
        cost = [
            f"{row.cost[key] * scale:.{digits}f}" if key in row.cost else ""
            for key, scale, digits in (("latency_ms_p50", 1, 1), ("parameters", 1e-6, 2))
        ]
        won = "" if row in trivial else beaten(row, trivial, result)
        auxiliary = ", ".join(result[row.model].get("auxiliary", {}).values())
        took = f"{seconds[row.model]:.0f}" if row.model in seconds else ""
        lines.append(f"| {row.rank} | {row.model} | {' | '.join([*values, won, took, *cost, row.weights, auxiliary])} |")
    lines += [
        "",
        "By category, image AUROC:",
        "",
        f"| model | {' | '.join(next(iter(result.values()))['categories'])} |",
        "| --- |" + " ---: |" * len(next(iter(result.values()))["categories"]),
    ]
    for row in rows:
        if not row.refused:
            lines.append(
                f"| {row.model} | " + " | ".join(cell(one["image_auroc"]) for one in result[row.model]["categories"].values()) + " |"
            )
    if missing := sorted({slug(detector) for detector in arguments.methods} - set(result)):
        lines += ["", f"No row: {', '.join(missing)}, whose training did not end in this run."]
    return "\n".join([*lines, "", FOOT.format(dataset=arguments.dataset, out=arguments.out), ""])


IMAGES = {
    "parts": "generated `parts`, drawn with seed {seed}, which no option was chosen on",
    "solar": "`solar`, electroluminescence photographs of solar cells, which no option was chosen on",
}
HEAD = """\
# Results of all twenty detectors

The schedule `cpu` (`assay models show NAME`): 128 px, at most 300 optimiser steps a category, the encoder that is built in or pixels. It is there so that
every model can be run and compared on a small machine in minutes, not to reach a paper's figures: weights, sizes and schedules are far from those of the
papers, so the order of the models here says nothing about theirs.

Images: {images}; training seed {seed};
intervals are 95 % bootstrap intervals over test images. {machine}.
"""
FOOT = """\
- A trivial row above a model says that the model has learnt nothing here that counts; losing rows stay.
- `weights` are those of the frozen encoder; `none` learns from pixels alone. EfficientAD's teacher and DSR's autoencoder are not built in and have
  to be made first, from the images of `parts` with seed 0: `assay weights distill-pdn pdn-small-quarter --dataset parts --image-size 128
  --batch-size 4 --steps 300`, `assay weights train-vq vq-dsr-quarter --dataset parts --image-size 128 --batch-size 8 --steps 1500`.
- `train s`: seconds of the verb `train`, all categories in two processes, on a machine with other work.
- Made by `python -m benchmarks.zoo --dataset {dataset} --out {out}`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=list(IMAGES), default="parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images-seed", type=int, default=1)
    parser.add_argument("--backbones", type=Path, default=ROOT / "backbones")
    parser.add_argument("--methods", nargs="*", default=sorted(name for name, one in zoo.zoo().methods.items() if one.category != "few_shot"))
    parser.add_argument("--folder", type=Path, default=None, help="work here and leave all there; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        content = settings(arguments.dataset, arguments.seed, arguments.images_seed, arguments.backbones, arguments.methods)
        text = page(folder, run_all(folder, content), arguments)
    print(text)
    if arguments.out:
        io.write_text(arguments.out, text)


if __name__ == "__main__":
    main()
