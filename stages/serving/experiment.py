"""`assay run`: one configuration (configuration.py) as a run of the pipeline, and its results as the tree that it names.

methods.py makes entries of params.yaml from it; a workspace is made of them, the verbs run in it, and the bench measures with the
configuration's numbers. What can be wrong with the device, the data or the weights is said before anything is written.

<output_root>/<name>/    summary_metrics.csv, summary_metrics_pretty.csv, summary_metrics_pretty.md, <category>/metrics.csv, <category>/overlays/,
                         latency.csv, latency.json, experiment.json
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from stages import io
from stages.detectors import zoo
from stages.encoders import weights
from stages.errors import Missing, UserError
from stages.metrics import tables
from stages.metrics.result import result_folder
from stages.metrics.tables import Cells
from stages.params import ParamsError
from stages.serving import methods, outputs, workspace
from stages.serving.configuration import Metrics, Read, Training, read
from stages.serving.work import Work
from stages.serving.workspace import Plan, Settings, Workspace

ABOUT = "experiment.json"
METRICS = {
    "compute_image_auroc": ("image_auroc",),
    "compute_image_ap": ("image_ap",),
    "compute_image_f1": ("image_f1_max",),
    "compute_pixel_auroc": ("pixel_auroc",),
    "compute_pixel_ap": ("pixel_ap",),
    "compute_pixel_f1": ("pixel_f1_max",),
    "compute_pro": ("aupro", "aupro_005"),
}


class Finished(NamedTuple):
    """folder: of the result tree; of a training, where its weights lie. summary: for people."""

    folder: Path
    summary: str
    mean: dict[str, Any]
    latency: dict[str, Any]


def run(path: Path, device: str | None = None, out: TextIO | None = None) -> Finished:
    """Run the configuration at `path`. device: in place of model.device. out: where the verbs print, stdout by default.

    Raises ParamsError for what the file asks for and cannot be, WeightsMissing (E101), StageFailed where a verb fails.
    """
    template, root = workspace.template_of()
    asked, backbones = read(path, methods.known(template)), root / template["backbones"]
    chosen, environment = _device(asked, device)
    plan = methods.plan(asked, template)
    for name in [*zoo.weights_of(plan.encoder_entry), *_own_weights(asked, plan)]:
        if name != weights.RANDOM:
            weights.resolve(name, backbones)
    work = Work(_workspace(asked, plan, chosen), out, environment)
    work.prepare()
    if refused := io.read_json(work.space.folder / "features" / work.space.dataset / plan.encoder / "encoder.json").get("refused"):
        raise Missing(refused)
    if asked.content.training:
        return _trained(asked.content.training, asked.content.experiment.seed, work, plan.encoder, chosen, backbones)
    return _judged(asked, work, plan)


def _own_weights(asked: Read, plan: Plan) -> list[str]:
    """What the detector itself brings along, where this run is not to make it."""
    return [plan.entry["checkpoint"]] if plan.entry.get("checkpoint") and not asked.content.training else []


def _device(asked: Read, given: str | None) -> tuple[str, dict[str, str]]:
    """compute.device, and what lets the verbs see one GPU alone where a number is given: `cuda:1` is then their `cuda`."""
    device, where = given or asked.content.model.device, "--device" if given else asked.at("model", "device")
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ParamsError(f"{where} must be auto, cpu, cuda or cuda:<number>, got {device!r}")
    if kind != "cuda":
        return kind, {}
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise ParamsError(f"{where} is {device}, but torch finds {found or 'no'} CUDA device{'s' * (found > 1)} here. Say --device cpu")
    if not number:
        return kind, {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return kind, {"CUDA_VISIBLE_DEVICES": visible.split(",")[int(number)] if visible else number}


def _workspace(asked: Read, plan: Plan, device: str) -> Workspace:
    data, seen, latency = asked.content.data, asked.content.visualization, asked.content.evaluation.latency
    root = Path(data.root)
    if not root.exists():
        raise Missing(f"{asked.at('data', 'root')}: {root} is not here. Unpack the data set there, or name its folder")
    changes = {
        "features": {"batch_size": data.batch_size},
        "report": {"overlays": seen.num_examples if seen.save_overlay else 0},
        "bench": {"warmup": latency.warmup_iters, "repeats": latency.measure_iters, "seconds": latency.max_seconds},
        "compute": {"device": device},
    }
    entry, plans = workspace.entry_of(data.dataset, root), {asked.content.model.name: plan}
    return workspace.make_planned(Settings(seed=asked.content.experiment.seed), data.dataset, entry, data.categories, plans, changes)


def _judged(asked: Read, work: Work, plan: Plan) -> Finished:
    """Fit, evaluate and measure; then write the tree."""
    [(name, model)] = work.space.runs.items()
    result = work.fit(name)
    if "refused" in result:
        raise UserError(result["refused"])
    work.run("bench", work.space.dataset, name)
    bench = io.read_json(work.space.folder / "metrics/bench" / f"{work.space.dataset}.json")
    latency = _latency(bench["models"][model], bench["machine"], asked)
    columns = _columns(asked.content.evaluation.metrics, result["mean"])
    categories = {category: _only(cells, columns) for category, cells in result["categories"].items()}
    mean, judged = _only(result["mean"], columns), work.space.folder / result_folder(work.space.dataset, model, model)
    folder = Path(asked.content.experiment.output_root, asked.content.experiment.name)
    _remove_earlier(folder)
    for category, cells in categories.items():
        outputs.write_category(folder / category, judged / category, cells, asked.content.visualization.save_overlay)
    outputs.write_summaries(folder, categories, mean)
    io.write_json(folder / "latency.json", latency)
    io.write_text(folder / "latency.csv", tables.rows_csv([latency], list(latency)))
    io.write_json(folder / ABOUT, _about(asked, plan, result))
    return Finished(folder, tables.pretty_markdown(categories, mean) + "\n" + _sentences(latency, result), mean, latency)


def _columns(wanted: Metrics, mean: Cells) -> list[str]:
    left_out = {name for key, names in METRICS.items() if not getattr(wanted, key) for name in names}
    return [name for name in mean if name not in left_out]


def _only(cells: Cells, columns: list[str]) -> Cells:
    return {name: cells[name] for name in columns}


def _remove_earlier(folder: Path) -> None:
    """The categories that an earlier run of the same name wrote: a summary must not stand beside pictures of another run."""
    earlier = io.read_json(folder / ABOUT)["categories"] if (folder / ABOUT).is_file() else []
    for category in earlier:
        shutil.rmtree(folder / category, ignore_errors=True)


def _about(asked: Read, plan: Plan, result: dict[str, Any]) -> dict[str, Any]:
    """All that the results depend on: the configuration with its defaults, and what it became."""
    about = {"configuration": asked.content.model_dump(mode="json"), "model": plan.entry, "encoder": plan.encoder_entry}
    kept = {key: result[key] for key in ("weights", "auxiliary", "refused_categories") if key in result}
    return {**about, **kept, "categories": list(result["categories"])}


def _latency(cost: dict[str, Any], machine: dict[str, Any], asked: Read) -> dict[str, Any]:
    rule = asked.content.evaluation.latency
    return {
        "latency_ms": cost["latency_ms_p50"],
        "latency_ms_p95": cost["latency_ms_p95"],
        "throughput_fps": cost["throughput_per_s"],
        "vram_peak_mb": cost["peak_vram_mb"],
        "total_parameters": cost["parameters"],
        "trainable_parameters": cost["trainable_parameters"],
        "flops": cost["flops"],
        "device": machine["device"],
        "threads": machine["threads"],
        "warmup_iters": cost["warmup"],
        "measured_iters": cost["repeats"],
        "batch_warmup_iters": cost["batch_warmup"],
        "batch_measured_iters": cost["batch_repeats"],
        "asked_warmup_iters": rule.warmup_iters,
        "asked_measure_iters": rule.measure_iters,
        "max_seconds": rule.max_seconds,
    }


def _sentences(latency: dict[str, Any], result: dict[str, Any]) -> str:
    vram = f"{latency['vram_peak_mb']:.0f} MB of VRAM" if latency["vram_peak_mb"] is not None else "no VRAM"
    measured = [latency[key] for key in ("warmup_iters", "measured_iters", "batch_warmup_iters", "batch_measured_iters")]
    asked = [latency["asked_warmup_iters"], latency["asked_measure_iters"]]
    cut = f", not {asked[0]} + {asked[1]}: evaluation.latency.max_seconds is {latency['max_seconds']:g}" if measured != asked * 2 else ""
    alone = f"latency {latency['latency_ms']:.1f} ms (batch 1)" if latency["latency_ms"] is not None else "no latency (it scores a set of images)"
    lines = [
        f"{alone}, throughput {latency['throughput_fps']:.1f} FPS (batch 16), {vram}, on {latency['device']}",
        f"warm-up + measured: {measured[0]} + {measured[1]} (batch 1), {measured[2]} + {measured[3]} (batch 16){cut}",
        f"parameters {latency['total_parameters']:,} ({latency['trainable_parameters']:,} trainable), {latency['flops'] / 1e9:.2f} GFLOPs an image",
        *(f"{category}: {reason}" for category, reason in result.get("refused_categories", {}).items()),
        *(["RANDOM WEIGHTS: these figures are of no use"] if result.get("weights") == weights.RANDOM else []),
    ]
    return "\n".join(lines)


def _trained(training: Training, seed: int, work: Work, encoder: str, device: str, backbones: Path) -> Finished:
    """Train the weights that AF-CLIP brings along, on the labelled test images of the data set; nothing is judged."""
    given = {
        "encoder": encoder,
        "name": training.checkpoint,
        "epochs": training.epochs,
        "batch-size": training.batch_size,
        "learning-rate": training.learning_rate,
        "seed": seed,
        "device": device,
    }
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    work.run("serving.cli", "train-afclip", work.space.dataset, *options)
    return Finished(backbones, f"{training.checkpoint} lies in {backbones}; name it in model.checkpoint", {}, {})
