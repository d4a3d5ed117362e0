"""`assay weld finetune`: the weld model trained from raw media, once for each way to adapt its encoders, and the table that compares them.

All variants share the seed, the batches, the views and the budget, so a difference is that of what learns. A variant that is there already with the same
settings is not trained again, and one that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import fusion, io
from stages.datasets.records import NORMAL, Records
from stages.errors import UserError
from stages.fusion import finetuned, finetuning
from stages.fusion.deep.maths.backbones import TWIN, parameters
from stages.fusion.finetuned import ADAPTS, DETECTOR, Config
from stages.fusion.one_off import PER_CLASS, OneOff
from stages.fusion.raw_media import extracted
from stages.metrics.bootstrap import bootstrap_interval, paired_difference
from stages.metrics.classes import class_counts, macro_f1
from stages.metrics.counts import Metric
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import IMAGE_METRICS
from stages.metrics.thresholds import conformal
from stages.params import Params, ParamsError, nearest
from stages.serving.weld_raw import Split, entries, fingerprint, reading_of, shape_of, source_of, split_of
from stages.training import Run

if TYPE_CHECKING:
    from stages.fusion.deep.cross_attention import CrossAttention
    from stages.fusion.deep.maths.learning import Learning
    from stages.fusion.deep.maths.sota_model import QuadModalSOTAModel
    from stages.fusion.raw_media import MediaSource

AUROC: Metric = IMAGE_METRICS["image_auroc"]
SPLITS = ("train", "val", "test")
TWINS = "twins are random networks that have learnt nothing: what follows shows that adapters and layers learn, and nothing of what published weights give"


class Sizes(NamedTuple):
    """film, photo: pixels a side, None for what suits the encoders. rank, last: of the adapters, and how many layers learn."""

    film: int | None = None
    photo: int | None = None
    rank: int = 8
    last: int = 1


SIZES = Sizes()


@dataclass(frozen=True)
class Asked:
    """The flags of the command."""

    dataset: str
    model: str
    adapt: tuple[str, ...]
    backbones: dict[str, str]
    sizes: Sizes = SIZES
    num_epochs: int | None = None
    batch_size: int | None = None
    mixed_precision: bool = False
    seed: int | None = None
    quick_test: bool = False
    out: Path | None = None

    @property
    def folder(self) -> Path:
        return self.out or Path("outputs/finetune", self.dataset)


class Task(NamedTuple):
    """What all variants share."""

    config: Config  # but for what of the encoders learns
    learning: Learning
    sources: dict[str, MediaSource]
    groups: list[str]  # of test, what is drawn as a whole
    notes: list[str]
    run: Run
    backbones: Path
    target: float  # of false alarms
    resamples: int


def finetune(params: Params, asked: Asked) -> dict[str, Any]:
    """Train every variant that is asked for, write their folders and finetune.json, and return what that holds. Raises UserError."""
    if not asked.adapt or set(asked.adapt) - set(ADAPTS):
        raise UserError(f"--adapt must be of {', '.join(ADAPTS)}, with commas between, got {','.join(asked.adapt)!r}")
    task = prepared(params, asked)
    for note in task.notes:
        task.run.say(note)
    start = None
    rows = []
    for adapt in [one for one in ADAPTS if one in asked.adapt]:
        sizes = {"rank": asked.sizes.rank if adapt == "lora" else 0, "last": asked.sizes.last if adapt == "last" else 0}
        config = task.config.model_copy(update={"adapt": adapt, **sizes})
        key = _key(task, config)
        place = asked.folder / adapt
        if not _done(place, key):
            start = start or _start(task, asked.folder)
            _variant(task, config, start, place, asked.folder / ".resume" / f"{adapt}-{key[:16]}", key)
        else:
            task.run.say(f"{adapt}: {place.as_posix()} has it already, by the same settings and data; it is not trained again")
        rows.append(io.read_json(place / "result.json"))
    found = _compared(task, asked, rows)
    io.write_json(asked.folder / "finetune.json", found)
    shutil.rmtree(asked.folder / ".resume", ignore_errors=True)
    return found


def prepared(params: Params, asked: Asked) -> Task:
    task = params.record_task
    task.entry("datasets", asked.dataset)
    detector, options, seed = _row(params, asked)
    finetuning.check(detector.learning, detector.encoding.align)
    splits = {name: split_of(asked.dataset, name) for name in SPLITS}
    if asked.quick_test:
        splits = {name: split._replace(rows=_few(split)) for name, split in splits.items()}
    said = entries(task, asked.dataset)
    config = Config(
        adapt="frozen", rank=asked.sizes.rank, last=asked.sizes.last, seed=seed, backbones=asked.backbones, options=options,
        fingerprints={name: finetuned.fingerprint(name, weights, params.backbones_folder, seed) for name, weights in asked.backbones.items()},
        classes=_classes(splits["train"]),
        shape=shape_of(said, {name: weights == TWIN for name, weights in asked.backbones.items()}, asked.sizes.film, asked.sizes.photo),
        reading=reading_of(said), dataset=asked.dataset, data=fingerprint(asked.dataset),
        libraries={name: importlib.metadata.version(name) for name in ("torch", "torchaudio")},
    )  # fmt: skip
    sources = {name: source_of(split.rows, split.root, config) for name, split in splits.items()}
    for name, split in splits.items():
        if {row.label for row in split.rows} != {0, 1}:
            raise UserError(f"{name} of {asked.dataset} has {len(split.rows)} welds with media, good ones or faulty ones alone; both are needed")
    run = Run(seed=seed, device=params.compute.device, label=f"finetune {asked.dataset}", dataset=asked.dataset)
    notes = _notes(asked, config, splits)
    protocol = task.protocol
    return Task(config, detector.learning, sources, [row.group for row in splits["test"].rows], notes, run, params.backbones_folder,
                protocol.target_false_alarm_rate, protocol.bootstrap_resamples)  # fmt: skip


def _row(params: Params, asked: Asked) -> tuple[CrossAttention, dict[str, Any], int]:
    """The row whose network stands behind the encoders, its options, and the seed. Raises ParamsError."""
    task = params.record_task
    found = {row: (run, entry) for run in task.runs.values() if run.dataset == asked.dataset for row, entry in task.rows(run.model).items()}
    if asked.model not in found:
        raise ParamsError(f"no run of params.yaml has the row {asked.model!r} on {asked.dataset}{nearest(asked.model, list(found))}")
    run, entry = found[asked.model]
    if entry.detector != DETECTOR:
        raise ParamsError(f"--model {asked.model} is {entry.detector}; raw media are learnt from by the network of {DETECTOR}. Name a row that is one")
    flags = OneOff(asked.model, asked.quick_test, False, asked.batch_size, asked.num_epochs, asked.mixed_precision)
    options = flags.options(entry.detector, entry.options)
    detector = finetuned.detector_of(options, asked.model)
    return detector, options, task.seeds(run)[0] if asked.seed is None else asked.seed


def _classes(train: Split) -> list[str]:
    if unnamed := [row.record_id for row in train.rows if row.label and not row.fault]:
        raise UserError(f"{len(unnamed)} faulty welds to learn from do not say their fault (first: {unnamed[0]}), and the model tells faults")
    return [NORMAL, *sorted({row.fault for row in train.rows if row.label})]


def _few(split: Split) -> list[Any]:
    """The first of each class."""
    seen: dict[str, int] = {}
    kept = []
    for row in split.rows:
        kind = row.fault if row.label else NORMAL
        seen[kind] = seen.get(kind, 0) + 1
        kept += [row] if seen[kind] <= PER_CLASS else []
    return kept


def _notes(asked: Asked, config: Config, splits: dict[str, Split]) -> list[str]:
    counts = ", ".join(f"{len(split.rows)} {name}" for name, split in splits.items())
    notes = [f"welds: {counts}; classes: {len(config.classes)}; seed {config.seed}"]
    notes += [f"{split.bare} welds of {name} have none of the four media and are left out" for name, split in splits.items() if split.bare]
    twins = [name for name, weights in config.backbones.items() if weights == TWIN]
    notes += [f"{', '.join(twins)}: {TWINS}"] if twins else []
    if "lora" in asked.adapt and (("audio", config.backbones["audio"]) in finetuned.ALL_CONVOLUTIONS):
        notes.append("the twin of sound is convolutions alone, so lora has no adapter there and it stays frozen")
    if not any(config.reading.crop):
        notes.append(f"the image encoder entry of {config.dataset} has no crop: a paper label that names the class would be seen")
    return notes


def _start(task: Task, folder: Path) -> tuple[Records, Records, Records]:
    """The tokens of all lists as the encoders make them before anything is learnt; made once and kept in the folder."""
    found = []
    model = finetuned.build(task.config, task.backbones).to(task.run.device)
    about = [task.config.fingerprints, task.config.shape, task.config.reading.model_dump(mode="json"), task.config.data]
    for name in SPLITS:
        source = task.sources[name]
        path = folder / ".resume" / f"tokens-{name}-{io.content_hash([about, source.record_id])[:16]}.safetensors"
        found.append(_stored(path, source, model) if path.is_file() else _kept(path, extracted(model, source, task.run.device)))
    return found[0], found[1], found[2]


def _kept(path: Path, records: Records) -> Records:
    io.write_model(path, {f"{name}.{part}": one for name, tokens in records.tokens.items() for part, one in tokens._asdict().items()}, {})
    return records


def _stored(path: Path, source: MediaSource, model: QuadModalSOTAModel) -> Records:
    import torch

    from stages.datasets.records import Ragged

    state = io.read_model(path)
    tokens = {name: Ragged(*(state[f"{name}.{part}"] for part in Ragged._fields)) for name in model.network.encoder.names}
    return Records(source.record_id, source.labels.to(torch.int8), tokens, source.faults)


def _key(task: Task, config: Config) -> str:
    """Of all that a variant depends on: settings, lists, data and code."""
    code = [io.file_hash(path) for path in sorted(Path(fusion.__file__).parent.rglob("*.py"))]
    return io.content_hash([config.as_json, task.learning.model_dump(mode="json"), [source.record_id for source in task.sources.values()], code])


def _done(place: Path, key: str) -> bool:
    names = ("result.json", "model.safetensors", "config.json", "history.json", "test.parquet")
    return all((place / name).is_file() for name in names) and io.read_json(place / "result.json")["key"] == key


def _variant(task: Task, config: Config, start: tuple[Records, Records, Records], place: Path, resume: Path, key: str) -> None:
    """Train one, judge it, and write its folder; result.json, which is written last, says that the folder is whole."""
    (place / "result.json").unlink(missing_ok=True)
    begun = time.perf_counter()
    run = Run(seed=config.seed, device=task.run.device, resume=resume, label=f"{task.run.label} {config.adapt}", dataset=config.dataset, quiet=task.run.quiet)
    model = finetuned.build(config, task.backbones)
    steps = finetuning.fit(model, task.sources["train"], task.sources["val"], task.learning, run, start[:2], "finetune")
    moving = finetuning.learns(model)
    val, test = (extracted(model, task.sources[name], run.device) if moving else start[at] for at, name in ((1, "val"), (2, "test")))
    score, _ = finetuning.answers(model, val)
    threshold = conformal(score.numpy()[task.sources["val"].labels.numpy() == 0], task.target)
    config = config.model_copy(update={"threshold": threshold.value})
    finetuned.save(place, model, config)
    io.write_json(place / "history.json", run.history)
    _write_scores(place / "test.parquet", model, test, config)
    total, learning = parameters(model)
    io.write_json(place / "result.json", {
        "key": key, "adapt": config.adapt, "parameters": total, "trainable": learning,
        "trainable_of_encoders": sum(parameters(one)[1] for one in model.encoders.values()),
        "encoder_bytes": finetuned.kept_bytes(model), "file_bytes": (place / "model.safetensors").stat().st_size,
        "kept_step": steps, "threshold": threshold.to_dict(), "seconds": round(time.perf_counter() - begun, 1),
    })  # fmt: skip


def _write_scores(path: Path, model: QuadModalSOTAModel, test: Records, config: Config) -> None:
    score, logits = finetuning.answers(model, test)
    kinds = [fault if label else NORMAL for label, fault in zip(test.label.tolist(), test.fault, strict=True)]
    told = [config.classes[place] for place in logits.argmax(1).tolist()]
    io.write_table(path, {"record_id": test.record_id, "label": test.label.tolist(), "class": kinds, "score": score.tolist(), "told": told})


def _compared(task: Task, asked: Asked, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table. Differences are paired: both models are seen in the same draws of sessions."""
    scores = {row["adapt"]: io.read_table(asked.folder / row["adapt"] / "test.parquet") for row in rows}
    found = []
    for row in rows:
        own = scores[row["adapt"]]
        label, score = np.array([one["label"] for one in own]), np.array([one["score"] for one in own])
        base = np.array([one["score"] for one in scores["frozen"]]) if "frozen" in scores and row["adapt"] != "frozen" else None
        found.append({
            **{name: value for name, value in row.items() if name != "key"},
            "share": row["trainable"] / row["parameters"], "share_of_encoders": row["trainable_of_encoders"] / row["parameters"],
            "auroc": _interval(lambda: bootstrap_interval(score, label, task.groups, AUROC, task.resamples)),  # noqa: B023
            "macro_f1": _macro_f1(own),
            "difference": None if base is None else _interval(lambda: paired_difference(score, base, label, task.groups, AUROC, task.resamples)),  # noqa: B023
        })  # fmt: skip
    about = task.config
    return {
        "dataset": asked.dataset, "row": asked.model, "seed": about.seed, "quick_test": asked.quick_test, "backbones": about.backbones, "notes": task.notes,
        "welds": {name: source.samples for name, source in task.sources.items()}, "rank": about.rank, "last": about.last, "epochs": task.learning.epochs,
        "folder": asked.folder.as_posix(), "variants": found,
    }  # fmt: skip


def _interval(measure: Any) -> dict[str, float] | None:
    try:
        return measure()._asdict()
    except Undefined:
        return None


def _macro_f1(rows: Sequence[dict[str, Any]]) -> float:
    """Over the classes that test has."""
    names = sorted({row[column] for row in rows for column in ("class", "told")})
    place = {name: number for number, name in enumerate(names)}
    true, told = ([place[row[column]] for row in rows] for column in ("class", "told"))
    return float(macro_f1(class_counts(true, told, len(names))))


def render(found: dict[str, Any]) -> str:
    columns = (("trainable", 12), ("share", 8), ("of encoders", 13), ("bytes kept", 12), ("of encoders", 13))
    head = f"{'adapt':<8}{''.join(f'{name:>{size}}' for name, size in columns)}  {'AUROC':<22}{'macro F1':>9}  {'less frozen':<24}{'s':>7}"
    lines = [head]
    for row in found["variants"]:
        lines.append(
            f"{row['adapt']:<8}{row['trainable']:>12,}{row['share']:>8.2%}{row['share_of_encoders']:>13.2%}{row['file_bytes']:>12,}{row['encoder_bytes']:>13,}"
            f"  {_told(row['auroc']):<22}{row['macro_f1']:>9.3f}  {_told(row['difference'], signed=True):<24}{row['seconds']:>7.1f}"
        )
    kept = f"{found['folder']}/: {', '.join(row['adapt'] for row in found['variants'])}, finetune.json"
    twins = [TWINS] if TWIN in found["backbones"].values() else []
    return "\n".join([*lines, "intervals: 95 %, over sessions of test", *twins, f"written to {kept}"])


def _told(cell: dict[str, float] | None, signed: bool = False) -> str:
    if cell is None:
        return "-"
    form = "{:+.3f}" if signed else "{:.3f}"
    value, low, high = (form.format(cell[name]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
