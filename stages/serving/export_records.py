"""A fitted deep model of records as files for other runtimes: ONNX, ONNX with 8-bit weights, and the program of torch.export.

Every file is proven before it is kept: the validation records (those of training where there are none), and each of them again without each of its
modalities, are scored by it and by the model. A file that turns a verdict around at the model's threshold, or whose scores differ by more than rounding
explains, is removed, and the export fails (E601). What was compared, and all that a user of the file needs to know of it, is in export.json and in the ONNX
files' own metadata.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import engine, errors, io
from stages.metrics.inputs import Undefined
from stages.params import Params
from stages.serving.record_model import RecordModel, threshold_of

if TYPE_CHECKING:
    from stages.datasets.records import Records
    from stages.fusion.deep.maths.graph import Scorer
    from stages.fusion.detector import RecordDetector

FOLDER = Path("outputs/export")
FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "pt2": "model.pt2"}
ROUNDING = 1e-4  # the greatest difference of a score that float32 may make, or of it where it is above 1
AUROC_LOSS = 0.005  # the greatest change of the AUROC that 8-bit weights may make
SHOWN = "padded tokens, float32: <modality>.values (B, L, D), .time (B, L) in 0..1, .mask (B, L) bool, True = a token; a missing modality is all masked"

Score = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray, np.ndarray]]


class ParityFailed(errors.UserError, ValueError):
    """E601: an exported file does not judge as its model does. What was measured is in `found`."""

    def __init__(self, message: str, found: dict[str, Any]) -> None:
        super().__init__(message)
        self.found = found


class Shown(NamedTuple):
    """Records that model and files are compared on, and what the model says of them."""

    records: Records
    score: np.ndarray  # (B,)
    kind: np.ndarray | None  # (B,) the class that is likeliest; None where the model tells none
    whole: int  # the first so many are as they are, the others lack something that they had
    split: str  # that they are of: val, or train where that is empty


def export(
    params: Params, model: RecordModel, out: Path | None = None, formats: Sequence[str] = ("onnx", "int8"), allow_flips: bool = False,
    exporter: str = "tracing",
) -> dict[str, Any]:  # fmt: skip
    """Write the files of `formats` into `out` (outputs/export/<dataset>/<model> by default), and export.json, whose content is returned.

    formats: of FILES. allow_flips: keep a file whose verdicts differ; the report says so. exporter: "tracing", or "dynamo", which needs onnxscript.
    Raises ParityFailed after all that passed has been written, UserError for a model that has no form as a graph.
    """
    from stages.fusion import forms
    from stages.fusion.deep.maths import graph

    if unknown := [name for name in formats if name not in FILES]:
        raise errors.UserError(f"no format {unknown[0]!r}; known: {', '.join(FILES)}")
    if not formats:
        raise errors.UserError(f"--formats names none; known: {', '.join(FILES)}")
    if exporter == "dynamo" and find_spec("onnxscript") is None:
        raise errors.UserError("--dynamo needs the package onnxscript, which is not installed. Install it, or leave --dynamo out")
    folder = model.project / FOLDER / model.dataset / model.name if out is None else out
    with engine.thread_limit(params.compute.threads):
        detector = model.detector()
        forms.check(detector)
        shown, made = _compared_on(model, detector)
        about = described(model, detector, made) | {"exporter": exporter}
        found = {"about": about, "compared_on": shown.split, "files": {}}
        exact = _figures(shown, shown.score, shown.kind, threshold_of(model).value) | {
            "latency_ms": _latency(params, shown, lambda one: detector.score(one))
        }
        found["model"] = {name: exact[name] for name in ("auroc", "latency_ms")} | {
            "bytes": (model.place / "model.safetensors").stat().st_size
        }
        content = None
        for name in [one for one in FILES if one in formats]:
            if name == "int8":
                source = content or graph.onnx_bytes(made, about, exporter)
                content, score = (done := graph.int8_bytes(source, about | {"weights": "int8"})), session(done, params.compute.threads)
            elif name == "onnx":
                content = graph.onnx_bytes(made, about, exporter)
                score = session(content, params.compute.threads)
            else:
                content, score = _program(made, about)
            found["files"][name] = _proven(
                params, folder, name, content, score, made, shown, exact["auroc"], threshold_of(model).value, allow_flips
            )
    io.write_json(folder / "export.json", found)
    if failed := [name for name, one in found["files"].items() if one["refused"]]:
        raise ParityFailed(_told(failed, found, folder), found)
    return found


def described(model: RecordModel, detector: RecordDetector, made: Scorer) -> dict[str, Any]:
    """What a user of the files has to know. The same model gives the same description."""
    config, threshold = io.read_json(io.require(model.place / "config.json")), threshold_of(model)
    return {
        "dataset": model.dataset,
        "model": model.name,
        "seed": model.seed,
        "detector": config["detector"],
        "data": config["data"],
        "sha256": io.file_hash(model.place / "model.safetensors"),
        "classes": detector.classes,
        "score": "log odds of any fault" if detector.supervised else "mean cosine distance to the nearest normal records",
        "threshold": threshold.to_dict(),
        "temperature": model.temperature(),
        "rule": "a score above the threshold is anomalous; with a temperature T the probability is 1 / (1 + exp(-score / T))",
        "input": SHOWN,
        "modalities": {
            name: {"width": width, "length": made.lengths[name], **_encoder(model, name)} for name, width in made.widths.items()
        },
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def session(content: bytes, threads: int) -> Score:
    """An ONNX file as a function from its inputs to score (B,), logits (B, C) and features (B, F)."""
    import onnxruntime

    from stages.fusion.deep.maths.graph import OUTPUTS

    onnxruntime.disable_telemetry_events()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 3
    opened = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return lambda feed: tuple(opened.run(list(OUTPUTS), feed))


def render(found: dict[str, Any]) -> str:
    """A few lines for a terminal."""
    model, about = found["model"], found["about"]
    lines = [
        f"{about['model']} on {about['dataset']}: AUROC {_number(model['auroc'])}, {model['bytes']:,} bytes, {_laps(model['latency_ms'])}"
    ]
    lines += ["  there is no validation record: compared on training records"] if found["compared_on"] == "train" else []
    for name, one in found["files"].items():
        kept = f"removed: {one['refused']}" if one["refused"] else f"kept as {one['file']}"
        lines.append(
            f"  {name}: {one['bytes']:,} bytes, {_laps(one['latency_ms'])}, greatest difference {one['max_difference']:.3g} ({one['worst_record']}), "
            f"AUROC {_number(one['auroc'])}, {one['flips']} of {one['compared']} verdicts and {one['other_class']} classes differ; {kept}"
        )
    return "\n".join(lines)


def _compared_on(model: RecordModel, detector: RecordDetector) -> tuple[Shown, Scorer]:
    """The validation records that show the model something, and each again without each modality that it has beside others."""
    from stages.datasets.record_sets import open_split
    from stages.fusion import forms

    shown = io.read_json(model.place / "config.json").get("shown")
    train, val = (open_split(model.dataset, split, model.project, shown) for split in ("train", "val"))
    given = val.take(range(val.samples)) if val.samples else train.take(range(train.samples))
    given = given.take(given.present.any(1).nonzero()[:, 0].tolist())
    if not given.samples:
        raise errors.Missing(f"no record of {model.dataset} to compare an export on. Look at the splits in its manifest.json")
    made = forms.scorer(detector, forms.lengths(detector, train, val))
    whole = detector.fitting(given)
    parts = [whole]
    for name in whole.tokens if len(whole.tokens) > 1 else ():
        left = whole.only([other for other in whole.tokens if other != name])
        changed = (left.present.any(1) & (left.present != whole.present).any(1)).nonzero()[:, 0].tolist()
        parts += [left.take(changed)] if changed else []
    every = _joined(parts)
    score = detector.score(every).double().numpy()
    kind = detector.classify(every).logits.argmax(1).numpy() if detector.telling else None
    return Shown(every, score, kind, whole.samples, "val" if val.samples else "train"), made


def _joined(parts: Sequence[Records]) -> Records:
    """One behind another; all have the same modalities."""
    import torch

    from stages.datasets.records import Ragged, Records

    tokens = {}
    for name in parts[0].tokens:
        own = [one.tokens[name] for one in parts]
        lengths = torch.cat([torch.zeros(1, dtype=torch.int64), *(one.lengths for one in own)])
        tokens[name] = Ragged(torch.cat([one.values for one in own]), torch.cat([one.time for one in own]), lengths.cumsum(0))
    return Records([name for one in parts for name in one.record_id], torch.cat([one.label for one in parts]), tokens)


def _proven(
    params: Params, folder: Path, name: str, content: bytes, score: Score, made: Scorer, shown: Shown, auroc: float | None, threshold: float | None,
    allow_flips: bool,
) -> dict[str, Any]:  # fmt: skip
    """Score everything by the file, write it where it passes, and say what was found."""
    from stages.fusion.deep.maths import graph

    values, logits, _ = score(graph.feed(shown.records, made.widths, made.lengths))
    kind = None if shown.kind is None else np.asarray(logits).argmax(1)
    found = _figures(shown, np.asarray(values, dtype=np.float64), kind, threshold)
    found |= {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "latency_ms": _latency(params, shown, lambda one: score(graph.feed(one, made.widths, made.lengths))),
        "auroc_change": None if auroc is None or found["auroc"] is None else found["auroc"] - auroc,
    }
    found["refused"] = _refused(name, found, allow_flips)
    path = folder / FILES[name]
    path.unlink(missing_ok=True)  # of an earlier export
    if not found["refused"]:
        io.write_bytes(path, content)
    return {"file": None if found["refused"] else FILES[name], **found}


def _figures(shown: Shown, score: np.ndarray, kind: np.ndarray | None, threshold: float | None) -> dict[str, Any]:
    """How scores differ from the model's, where they are numbers. `beyond_rounding`: the greatest difference, as a share of the score where that is above 1.

    `flips`: verdicts that differ; `on_threshold`: those of them that rounding alone explains. The threshold is the score of a validation record, to the last
    digit, so that on that record any rounding turns the verdict around; it counts as no flip.
    """
    from stages.metrics.ranking import auroc

    unlike = ~np.isfinite(score)
    apart = np.where(unlike, 0.0, np.abs(score - shown.score))
    share = apart / np.maximum(np.abs(shown.score), 1)
    turned = np.zeros(len(score), bool) if threshold is None else (score > threshold) != (shown.score > threshold)
    worst, label = int((unlike if unlike.any() else apart).argmax()), shown.records.label.numpy()[: shown.whole]
    judged = label >= 0
    try:
        area = auroc(score[: shown.whole][judged], label[judged]) if not unlike.any() else None
    except Undefined:
        area = None
    return {
        "records": shown.whole,
        "compared": len(score),
        "not_numbers": int(unlike.sum()),
        "max_difference": float(apart[worst]),
        "mean_difference": float(apart.mean()),
        "beyond_rounding": float(share.max()),
        "worst_record": shown.records.record_id[worst],
        "auroc": area,
        "flips": int((turned & (share > ROUNDING)).sum()),
        "on_threshold": int((turned & (share <= ROUNDING)).sum()),
        "other_class": 0 if kind is None else int((kind != shown.kind).sum()),
    }


def _refused(name: str, found: dict[str, Any], allow_flips: bool) -> str | None:
    """Why a file is not kept; None where it is."""
    if found["not_numbers"]:
        return f"{found['not_numbers']} scores are not numbers"
    if name != "int8" and found["beyond_rounding"] > ROUNDING:
        return f"scores differ by {found['max_difference']:.3g}, more than rounding ({ROUNDING:g}) explains"
    if found["flips"] and not allow_flips:
        return f"{found['flips']} verdicts differ"
    if found["auroc_change"] is not None and abs(found["auroc_change"]) > AUROC_LOSS and not allow_flips:
        return f"the AUROC differs by {found['auroc_change']:+.4f}, more than {AUROC_LOSS}"
    return None


def _told(failed: Sequence[str], found: dict[str, Any], folder: Path) -> str:
    parts = []
    for name in failed:
        one = found["files"][name]
        parts.append(
            f"{FILES[name]}: {one['refused']} (greatest difference of a score {one['max_difference']:.4g}, of {one['worst_record']}; "
            f"{one['flips']} of {one['compared']} verdicts differ)"
        )
    kept = [one["file"] for one in found["files"].values() if one["file"]]
    rest = f"Kept: {', '.join(kept)}. " if kept else ""
    return (
        f"E601 parity failed, not written: {'; '.join(parts)}. {rest}{(folder / 'export.json').as_posix()} has the figures; "
        "--allow-flips keeps a file whose verdicts differ"
    )


def _program(made: Scorer, about: dict[str, Any]) -> tuple[bytes, Score]:
    import torch

    from stages.fusion.deep.maths import graph

    program, file = graph.program(made), BytesIO()
    torch.export.save(program, file, extra_files={"assay.json": json.dumps(about, sort_keys=True)})
    module = program.module()

    def score(feed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.no_grad():
            return tuple(one.numpy() for one in module(*(torch.from_numpy(feed[name]) for name in made.inputs)))

    return file.getvalue(), score


def _latency(params: Params, shown: Shown, call: Callable[[Records], object]) -> dict[str, float]:
    """Of one record, the first of those with the most modalities."""
    from stages.metrics.latency import measure

    rule = params.bench
    one = shown.records.take([int(shown.records.present.sum(1).argmax())])
    found = measure(lambda: call(one), rule.warmup, rule.repeats, rule.seconds)
    return {"p50": round(found.p50_ms, 3), "p95": round(found.p95_ms, 3)}


def _encoder(model: RecordModel, modality: str) -> dict[str, Any]:
    """Which encoder made the tokens, as its store says."""
    about = model.project / "features" / model.dataset / modality / "records.json"
    content = io.read_json(about) if about.is_file() else {}
    return {"encoder": content.get("entry"), "weights": content.get("weights")}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _laps(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.2f} ms (p95 {latency['p95']:.2f})"
