"""One training by hand: a row fitted on few records, with other sizes, or with its first batch shown, and params.yaml as it is.

What differs from params.yaml is fitted into a folder of its own, so that models/ holds what the pipeline makes and nothing else. A flag that a detector has
no option for is an error and not ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import fusion, io
from stages.datasets.records import Records
from stages.params import ParamsError, fields_of, nearest

if TYPE_CHECKING:
    from stages.datasets.record_store import Subset
    from stages.fusion.detector import RecordDetector

FOLDER = Path(".assay/one_off")  # where what differs from params.yaml lies, under the same names as in models/
PER_CLASS, QUICK_STEPS, QUICK_EPOCHS = 2, 20, 2  # of a quick test
SHOWN = 4  # records of the first batch, where a detector says no batch size


@dataclass(frozen=True)
class OneOff:
    """model: one row of the run. keep_last: so many states of a training are kept beside the best one. The rest are the command's flags."""

    model: str | None = None
    quick_test: bool = False
    debug: bool = False
    batch_size: int | None = None
    num_epochs: int | None = None
    mixed_precision: bool = False
    keep_last: int = 0
    seed: int | None = None

    @property
    def differs(self) -> bool:
        """Whether something else comes out of it than params.yaml says: another model, or files beside it."""
        return self.quick_test or self.mixed_precision or self.keep_last > 0 or any(one is not None for one in (self.batch_size, self.num_epochs, self.seed))

    @property
    def root(self) -> Path:
        return FOLDER if self.differs else Path()

    def rows(self, known: Sequence[str]) -> list[str]:
        if self.model is None:
            return list(known)
        if self.model not in known:
            raise ParamsError(f"the run has no row {self.model!r}{nearest(self.model, list(known))}")
        return [self.model]

    def options(self, detector: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of an entry with what the flags change. Raises ParamsError for a flag that the detector has no option for."""
        changes: list[tuple[str, Any, str]] = []  # option, value, the flag that must not be ignored
        if self.quick_test:
            changes += [("steps", QUICK_STEPS, ""), ("epochs", QUICK_EPOCHS, "")]
        if self.num_epochs is not None:
            changes.append(("epochs", self.num_epochs, "--num-epochs"))
        if self.mixed_precision:
            changes.append(("mixed_precision", True, "--mixed-precision"))
        if self.batch_size is not None:
            changes.append(("batch_size", self.batch_size, "--batch-size"))
        found = dict(options)
        for name, value, flag in changes:
            place = place_of(detector, name)
            if place is None and flag:
                raise ParamsError(f"{detector} has no option {name!r}, so {flag} cannot be given to it. Leave it out")
            found = merged(found, nested(place, value)) if place else found
        return found

    def few(self, records: Subset) -> Subset:
        """Of a quick test the first records of each class; else all."""
        if not self.quick_test:
            return records
        kinds, seen, kept = list(records.fault) or [""] * records.samples, dict[tuple[int, str], int](), []
        for place, key in enumerate(zip(records.label.tolist(), kinds, strict=True)):
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= PER_CLASS:
                kept.append(place)
        return records.kept(kept)


PLAIN = OneOff()


def parsed(arguments: Sequence[str]) -> tuple[str, OneOff]:
    """The name of a run and what is asked of it, from a command line."""
    parser = argparse.ArgumentParser(prog="python -m stages.train_records", description="Fit the detectors of records of one run of params.yaml.")
    parser.add_argument("run", help="a run of params.yaml, section records")
    for flag, kind, told in (
        ("--model", str, "only this row of the run"),
        ("--batch-size", int, "records in a step"),
        ("--num-epochs", int, "at most so many passes"),
        ("--keep-last", int, "keep so many last states of the training beside the best"),
        ("--seed", int, "this seed alone"),
    ):
        parser.add_argument(flag, type=kind, help=told, default=0 if flag == "--keep-last" else None)
    parser.add_argument("--quick-test", action="store_true", help=f"{PER_CLASS} records a class, at most {QUICK_STEPS} steps")
    parser.add_argument("--debug", action="store_true", help="print the first batch and how many parameters there are")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 on CUDA; elsewhere it is said and ignored")
    given = vars(parser.parse_args(arguments))
    return given.pop("run"), OneOff(**given)


def place_of(detector: str, option: str) -> tuple[str, ...] | None:
    """Where a detector has an option: by itself or in its nested `learning`; None where nowhere."""
    fields = fields_of(fusion.load(detector))
    if option in fields:
        return (option,)
    return ("learning", option) if option in getattr(fields.get("learning", (None,))[0], "model_fields", {}) else None


def nested(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(place):
        value = {name: value}
    return value


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those changes, nested ones within theirs."""
    both = {
        name: merged(options[name], value) if isinstance(value, Mapping) and isinstance(options.get(name), Mapping) else value
        for name, value in changes.items()
    }
    return {**options, **both}


def first_batch(detector: RecordDetector, train: Subset, seed: int) -> str:
    """What a training sees first: shapes, labels and what is present of its first records, and how many parameters there are, all and trainable."""
    from stages.fusion.detector import class_names

    learning = getattr(detector, "learning", None)
    size = learning.batch if learning else getattr(detector, "batch_size", SHOWN)
    batch = train.take(range(min(size, train.samples)))
    detector.open(train.widths, seed, class_names(train) if detector.telling else ())
    total = sum(one.numel() for one in detector.parameters())
    learnt = sum(one.numel() for one in detector.parameters() if one.requires_grad)
    share = f" ({learnt / total:.1%})" if total else ""
    return "\n".join([*_shapes(batch), f"parameters: {total:,} in all, {learnt:,} trainable{share}"])


def _shapes(batch: Records) -> list[str]:
    lines = [f"first batch: {batch.samples} records", f"label: {batch.label.tolist()}"]
    if batch.fault:
        lines.append(f"class: {[fault or 'normal' for fault in batch.fault]}")
    for (name, one), there in zip(batch.tokens.items(), batch.present.T, strict=True):
        lines.append(f"{name}: values {tuple(one.values.shape)}, tokens {one.lengths.tolist()}, present {there.int().tolist()}")
    return lines


def keeper(detector: RecordDetector, folder: Path, count: int) -> Callable[[Mapping[str, Any]], None] | None:
    """What `Run.heard` is to be told: it keeps the last `count` states as safetensors in `folder`; the best one is the model itself."""
    if count < 1:
        return None

    def keep(row: Mapping[str, Any]) -> None:
        name = f"{row['training']}-{row['step']:06d}.safetensors"
        io.write_model(folder / name, detector.state_dict(), {key: row[key] for key in ("training", "step", "epoch")})
        for old in sorted(folder.glob(f"{row['training']}-*.safetensors"))[:-count]:
            old.unlink()

    return keep
