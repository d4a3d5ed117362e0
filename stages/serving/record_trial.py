"""One training on a list of files, epoch by epoch, and the judgement of any of its checkpoints.

The split is 70 / 15 / 15 in whole groups, both labels in each list; it is written beside the checkpoints as train.json, val.json and test.json, which
--test_json takes. Early stopping is off: each epoch is a checkpoint, and the log says which one was best on val.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from stages import fusion, io
from stages.datasets import record_splits
from stages.datasets.record_files import SPLITS
from stages.datasets.record_intake import Grouping, Intake, grouped
from stages.datasets.record_lists import Item, listing
from stages.datasets.records import UNKNOWN, Record, Records, batches, packed
from stages.errors import UserError
from stages.params import ParamsError, fields_of, nearest
from stages.progress import progress
from stages.serving import record_checkpoint

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

VAL, TEST = 0.15, 0.15
RESUME = ".resume"  # in the folder of the checkpoints, while a training is not at its end
WATCHED = ("val_rank_loss", "val_loss")  # what fits keep the lowest of
CHECKPOINT_S = 5.0  # how much work a kill may cost
Say = Callable[[str], None]


class Plan(NamedTuple):
    """thr: on the probability. group: of files that do not say what must not be split."""

    detector: str
    options: dict[str, Any]
    thr: float
    seed: int
    device: str
    group: Grouping
    as_tokens: bool


class Gathered(NamedTuple):
    records: list[Record]
    paths: list[Path]
    widths: dict[str, int]
    rejected: list[dict[str, str]]
    grouping: str


def require_device(device: str) -> None:
    """Raises UserError for a device that is none, or is not here."""
    from stages.encoders.encoder import resolve_device

    try:
        resolve_device(device)
    except ParamsError as error:
        raise UserError(str(error).replace("compute.device", "--device")) from None


def schedule(detector: str, asked: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Those of the options asked for that the detector has, without early stopping; `say` is told of the others. Raises UserError for no detector."""
    if detector not in fusion.known():
        raise UserError(f"--model: there is no detector of records {detector!r}{nearest(detector, fusion.known())}")
    fields = fields_of(fusion.load(detector))
    if unused := [name for name in asked if name not in fields]:
        say(f"{detector} has no {', '.join(unused)}: these flags mean nothing to it")
    taken = {name: value for name, value in asked.items() if name in fields}
    if "patience" in fields:
        taken["patience"] = None if NoneType in get_args(fields["patience"][0]) else asked["epochs"]
    return taken


def built(plan: Plan) -> RecordDetector:
    """The detector, unfitted. Raises UserError for options that it does not take, and for one that gives no probability."""
    detector = fusion.build(plan.detector, plan.options, at=("--options",))
    if not detector.supervised:
        raise UserError(f"--model {plan.detector} learns without labels and gives no probability; choose a supervised one, such as perceiver_moe")
    return detector


def gather(source: Path, group: Grouping, as_tokens: bool, say: Say, labelled: bool = True) -> Gathered:
    """All records of a list in memory. Raises RecordError past 5 % of files that cannot be used; `labelled`, those without a label are among them."""
    found = listing(source)
    intake, records = Intake(found, as_tokens=as_tokens, labelled=labelled, say=say), list[Record]()
    with progress("reading", len(found.items)) as advance:
        for position in range(len(found.items)):
            if (record := intake.read(position)) is not None:
                records.append(record)
            advance(1)
    intake.require_most()
    for one in intake.rejected:
        say(f"left out: {one.code} {one.path}: {one.key} {one.reason}")
    paths, said = ([table[record.record_id] for record in records] for table in (intake.paths, intake.said_ids))
    groups, rule = grouped(group, paths, said, [one.group for one in records], [one.label for one in records])
    records = [record._replace(group=given or record.record_id) for record, given in zip(records, groups, strict=True)]
    return Gathered(records, [found.root / path for path in paths], intake.widths, [one._asdict() for one in intake.rejected], rule)


def train(total_json: Path, plan: Plan, ckpt_dir: Path, log_json: Path, say: Say) -> dict[str, Any]:
    """Train, write a checkpoint and the log after every epoch, judge the best epoch on test. Returns the log."""
    from stages.training import Run

    detector = built(plan)
    gathered = gather(total_json, plan.group, plan.as_tokens, say)
    lists, counts = split(gathered, plan.seed)
    write_lists(gathered, lists, ckpt_dir)
    say(f"{len(gathered.records)} records, grouped by {gathered.grouping}; " + ", ".join(f"{name} {len(at)}" for name, at in lists.items()))
    parts = {name: packed([gathered.records[at] for at in positions], gathered.widths) for name, positions in lists.items()}
    resume = ckpt_dir / RESUME / _identity(gathered, lists, plan)
    log = Log(log_json, plan, gathered, counts)
    if not (resume.is_dir() and log.take_over()):
        shutil.rmtree(ckpt_dir / RESUME, ignore_errors=True)
        if old := sorted(path.name for path in ckpt_dir.glob("epoch_*.safetensors")):
            say(f"{ckpt_dir} holds {old[0]} to {old[-1]} of an earlier training; those of the same number are replaced")
    run = Run(plan.seed, plan.device, resume, label=plan.detector, checkpoint_s=CHECKPOINT_S)
    run.heard = Watcher(detector, parts["val"], plan, ckpt_dir, log, say)
    detector.fit(parts["train"], parts["val"], run)
    if not run.history:  # it does not learn in epochs
        run.heard({"epoch": 0, "loss": None, "lr": None})
    log.content["best_epoch"] = best = _best(run.history)
    checkpoint = record_checkpoint.load(record_checkpoint.path_of(ckpt_dir, best))
    log.content["test"] = judged(checkpoint, parts["test"], plan.thr)
    log.write()
    shutil.rmtree(ckpt_dir / RESUME, ignore_errors=True)
    return log.content


def judge(test_json: Path, ckpt_load: Path, thr: float, log_json: Path, device: str, say: Say) -> dict[str, Any]:
    """What a checkpoint says of each record of a list, and its figures on those that have a label; also written to log_json."""
    from stages.training import Run

    checkpoint = record_checkpoint.load(ckpt_load)
    checkpoint.detector.to(Run(0, device).device)
    gathered = gather(test_json, "file", checkpoint.about["as_tokens"], say, labelled=False)
    records = packed(gathered.records, gathered.widths)
    known = (records.label != UNKNOWN).nonzero()[:, 0].tolist()
    found: dict[str, Any] = {"checkpoint": checkpoint.path.name, "epoch": checkpoint.about["epoch"], "records": records.samples, "thr": thr}
    found = (judged(checkpoint, records.take(known), thr) if known else {"temperature": checkpoint.about["temperature"]}) | found
    if unlabelled := records.samples - len(known):
        found["note"] = f"{unlabelled} of {records.samples} records have no label: they are scored, and no figure is of them"
    found |= {"verdicts": verdicts(checkpoint, records, thr), "rejected": gathered.rejected}
    io.write_json(log_json, found)
    return found


def split(gathered: Gathered, seed: int) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Positions of train, val and test, and how many of each label they have."""
    rows = [
        {**{name: getattr(record, name) for name in ("record_id", "label", "group", "fault", "split")}, "stored_hash": io.file_hash(path)}
        for record, path in zip(gathered.records, gathered.paths, strict=True)
    ]
    drawn = record_splits.split("the list", rows, record_splits.Rule(seed, VAL, TEST))
    place = {record.record_id: at for at, record in enumerate(gathered.records)}
    lists = {name: [place[row["record_id"]] for row in drawn.samples if row["split"] == name] for name in SPLITS}
    return lists, record_splits.counts(drawn.samples)


def write_lists(gathered: Gathered, lists: Mapping[str, list[int]], folder: Path) -> None:
    """train.json, val.json and test.json, paths relative to them where they can be."""
    base = folder.resolve()
    for name, positions in lists.items():
        items = []
        for at in positions:
            record, path = gathered.records[at], gathered.paths[at].resolve()
            relative = Path(os.path.relpath(path, base)) if path.anchor == base.anchor else path
            told = Item(relative.as_posix(), record.record_id, record.label, record.group, record.fault or None, name)
            items.append({key: value for key, value in told._asdict().items() if value is not None})
        io.write_json(folder / f"{name}.json", {"version": 1, "root": ".", "items": items})


class Log:
    """log_json: what was asked, what was split, one entry for each epoch, and at the end the judgement of the best on test."""

    def __init__(self, path: Path, plan: Plan, gathered: Gathered, counts: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"asked": plan._asdict(), "modalities": gathered.widths, "grouping": gathered.grouping, "split": counts}
        self.content |= {"rejected": gathered.rejected, "epochs": []}

    def take_over(self) -> bool:
        """Go on with the entries of a log that tells of the same training; False where there is none."""
        before = io.read_json(self.path) if self.path.is_file() else {}
        if not isinstance(before, dict) or before.get("asked") != self.content["asked"] or not isinstance(before.get("epochs"), list):
            return False
        self.content["epochs"] = before["epochs"]
        return True

    def add(self, entry: dict[str, Any]) -> None:
        """An epoch that is told again after a kill takes the place of what it was told as."""
        kept = [one for one in self.content["epochs"] if one["epoch"] < entry["epoch"]]
        self.content["epochs"] = [*kept, entry]
        self.write()

    def write(self) -> None:
        io.write_json(self.path, self.content)


class Watcher:
    """Called with each row of a fit's history: one checkpoint and one entry of the log."""

    def __init__(self, detector: RecordDetector, val: Records, plan: Plan, folder: Path, log: Log, say: Say) -> None:
        self.detector, self.val, self.plan, self.folder, self.log, self.say = detector, val, plan, folder, log, say
        self.since = time.monotonic()

    def __call__(self, row: Mapping[str, Any]) -> None:
        from stages.metrics.calibration import probability, temperature
        from stages.metrics.confusion import confusion
        from stages.metrics.inputs import Undefined
        from stages.metrics.ranking import auroc

        logits, label = scores(self.detector, self.val), self.val.label.numpy()
        try:
            heat, area = temperature(logits, label), auroc(logits, label)
        except Undefined:  # a list that fixes its own split may have one label in val
            heat, area = 1.0, None
        epoch, now = int(row["epoch"]) + 1, time.monotonic()
        path = record_checkpoint.path_of(self.folder, epoch)
        told = {"epoch": epoch, "temperature": heat, "thr": self.plan.thr, "seed": self.plan.seed, "as_tokens": self.plan.as_tokens}
        record_checkpoint.save(path, self.detector, {"detector": self.plan.detector, "options": self.plan.options, **told})
        entry = {"epoch": epoch, "loss": row["loss"], "val_auc": area, "val_f1": confusion(probability(logits, heat), label, self.plan.thr).f1}
        self.log.add({**entry, "lr": row["lr"], "seconds": round(now - self.since, 3), "checkpoint": path.name})
        self.since = now
        shown = {name: "none" if value is None else f"{value:.4f}" for name, value in entry.items() if name != "epoch"}
        self.say(f"epoch {epoch}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))


def scores(detector: RecordDetector, records: Records) -> Any:
    """(B,) float64 on the CPU."""
    import torch

    return torch.cat([detector.score(part).cpu() for part in batches(records)]).double().numpy()


def verdicts(checkpoint: record_checkpoint.Checkpoint, records: Records, thr: float) -> list[dict[str, Any]]:
    """One for each record in order: its id, the probability of an anomaly, and what is above `thr`."""
    from stages.metrics.calibration import probability

    chance = probability(scores(checkpoint.detector, records), checkpoint.about["temperature"]).tolist()
    return [
        {"record_id": name, "probability": one, "verdict": "anomalous" if one > thr else "normal"}
        for name, one in zip(records.record_id, chance, strict=True)
    ]


def judged(checkpoint: record_checkpoint.Checkpoint, records: Records, thr: float) -> dict[str, Any]:
    """Ranking, decisions at `thr`, calibration, and the same AUROC by which modalities are present. A figure that is not defined is null."""
    from stages.metrics import calibration
    from stages.metrics.confusion import confusion

    heat, label = checkpoint.about["temperature"], records.label.numpy()
    logits = scores(checkpoint.detector, records)
    chance = calibration.probability(logits, heat)
    at = confusion(chance, label, thr)
    found: dict[str, Any] = {"checkpoint": checkpoint.path.name, "epoch": checkpoint.about["epoch"], "records": records.samples, "thr": thr}
    found |= {"anomalous": int(label.sum()), **_ranked(logits, label), **{name: at.rates[name] for name in ("f1", "accuracy", "precision", "recall")}}
    found |= {"confusion": at._asdict(), "temperature": heat, "ece": calibration.ece(chance, label)}
    found |= {"ece_before": calibration.ece(calibration.probability(logits), label)}
    names = ["+".join(name for name, has in zip(records.tokens, row, strict=True) if has) for row in records.present.tolist()]
    subsets = {}
    for name, count in Counter(names).most_common():
        chosen = [one == name for one in names]
        subsets[name] = {"records": count, "anomalous": int(label[chosen].sum()), **_ranked(logits[chosen], label[chosen])}
    return found | {"subsets": subsets}


def render(found: dict[str, Any]) -> str:
    """The figures of `judged` for people."""

    def shown(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.4f}"

    if "confusion" not in found:
        called = sum(one["verdict"] == "anomalous" for one in found["verdicts"])
        counted = f"{called} of them called anomalous, by a probability above {found['thr']:g}"
        return f"{found['checkpoint']} on {found['records']} records, {counted}\n  {found['note']}"
    counts = found["confusion"]
    lines = [f"{found['checkpoint']} on {found['records']} records, {found['anomalous']} of them anomalous; anomalous is a probability above {found['thr']:g}"]
    lines += [f"  {found['note']}"] if "note" in found else []
    lines.append("  " + ", ".join(f"{name} {shown(found[key])}" for name, key in (("AUROC", "auroc"), ("AP", "average_precision"), ("F1", "f1"))))
    lines.append("  " + ", ".join(f"{name} {shown(found[name])}" for name in ("accuracy", "precision", "recall")))
    lines.append(f"  confusion: tp {counts['tp']}, fp {counts['fp']}, fn {counts['fn']}, tn {counts['tn']}")
    lines.append(f"  ECE {shown(found['ece'])} at temperature {found['temperature']:.3g}, {shown(found['ece_before'])} without")
    for name, one in found["subsets"].items():
        lines.append(f"  with {name}: {one['records']} records, {one['anomalous']} anomalous, AUROC {shown(one['auroc'])}")
    return "\n".join(lines)


def _ranked(logits: Any, label: Any) -> dict[str, float | None]:
    from stages.metrics.inputs import Undefined
    from stages.metrics.ranking import auroc, average_precision

    try:
        return {"auroc": auroc(logits, label), "average_precision": average_precision(logits, label)}
    except Undefined:
        return {"auroc": None, "average_precision": None}


def _best(history: list[dict[str, Any]]) -> int:
    """The epoch, from 1, whose state a fit keeps: the lowest of what it watches, else the last."""
    name = next((name for name in WATCHED if history and name in history[0]), None)
    row = min(history, key=lambda one: one[name]) if name else (history or [{"epoch": 0}])[-1]
    return int(row["epoch"]) + 1


def _identity(gathered: Gathered, lists: Mapping[str, list[int]], plan: Plan) -> str:
    files = [(path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in gathered.paths]
    return io.content_hash([files, lists, plan._asdict()])[:16]
