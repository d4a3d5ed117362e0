"""Tokens of another kind for an ablation: the data set, or what its encoders make of it, with some options of params.yaml changed.

A variation is a project of its own in `.assay/study/<hash>/`, with params.yaml, data/ and features/, made once by the verbs prepare_records,
manifest_records and extract_records. Where the data set itself is as it was, its media are read where they are, and no store but those of the changed
encoders is made anew. The hash is of the changed entries, of their code, and of the data set as it is; what was made is written down step by step, so that a
variation that was interrupted goes on. Its records must be those of the data set, or it is not compared with it.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import stages
from stages import errors, io
from stages.datasets import record_adapters
from stages.datasets.record_sets import fingerprint
from stages.datasets.samples import root_of
from stages.encoders import media
from stages.errors import UserError
from stages.params import PATH, ParamsError, nearest, options, read_yaml

FOLDER = Path(".assay/study")
DONE = "made.json"  # the steps that are finished
SAME = ("record_id", "label", "fault", "group")  # of the sample table; folds are made of these and of facts


class Tokens(NamedTuple):
    """What is changed before anything is learnt. data: of the data set's entry. encoders: by modality of its encoder's entry, which a `kind` replaces."""

    data: dict[str, Any] = {}
    encoders: dict[str, dict[str, Any]] = {}


class Variation(NamedTuple):
    dataset: str
    tokens: Tokens
    project: Path  # where it is, or will be
    settings: dict[str, Any]  # its params.yaml
    encoded: tuple[str, ...]  # modalities whose tokens are made anew

    @property
    def steps(self) -> list[str]:
        first = ["prepare", "manifest"] if self.tokens.data else ["copy"]
        return [*first, *(f"extract {name}" for name in self.encoded)]

    @property
    def left(self) -> list[str]:
        """Steps that are not finished."""
        path = self.project / DONE
        done = io.read_json(path) if path.is_file() else []
        return [step for step in self.steps if step not in done]

    def data_key(self) -> str:
        """What cells hang on: the fingerprint of the made tokens. Before they are made the name of the folder, which no finished cell has."""
        return self.project.name if self.left else fingerprint(self.dataset, self.project)


def variation(dataset: str, tokens: Tokens, data: str) -> Variation:
    """What would be made; nothing is. data: fingerprint of the data set as it is.

    Raises ParamsError for a modality that has no encoder, and for an option that the adapter or the encoder does not have.
    """
    settings = read_yaml(PATH)
    task = settings["records"]
    jobs = {job["modality"]: job["encoder"] for job in task["extracts"].values() if job["dataset"] == dataset}
    entry = task["datasets"][dataset]
    entry |= tokens.data
    if tokens.data:
        _check_adapter(dataset, entry)
    changed: set[str] = set()
    for modality, changes in tokens.encoders.items():
        if modality not in jobs:
            raise ParamsError(f"params.yaml: records.extracts has no encoder of {dataset} {modality}{nearest(modality, list(jobs))}")
        name = jobs[modality]
        task["encoders"][name] = changes if "kind" in changes else task["encoders"][name] | changes
        _check_encoder(name, task["encoders"][name])
        changed.add(name)
    encoded = tuple(modality for modality, name in jobs.items() if tokens.data or name in changed)
    encoders = {modality: task["encoders"][jobs[modality]] for modality in encoded}
    code = _code([Path(entry["source"])] if tokens.data else [], [entry["adapter"]] if tokens.data else [], encoders)
    place = FOLDER / io.content_hash([dataset, tokens.data and entry, encoders, code, data])[:16]
    entry["source"] = Path(entry["source"]).resolve().as_posix()
    settings["backbones"] = Path(settings["backbones"]).resolve().as_posix()
    return Variation(dataset, tokens, place, settings, encoded)


def make(one: Variation) -> None:
    """Make what is not there. What the verbs print goes to stderr. Raises UserError where a step fails."""
    left = one.left
    done = [step for step in one.steps if step not in left]
    _write_settings(one)
    for step in left:
        with contextlib.redirect_stdout(sys.stderr):
            code = _copy(one) if step == "copy" else _verb(one, step)
        if code != errors.OK:
            raise UserError(f"{one.project}: the step {step!r} ended with exit code {code}; the reason is above. Mend it and run the same command again")
        done.append(step)
        io.write_json(one.project / DONE, done)


def other_records(one: Variation) -> str | None:
    """Why the records of a made variation cannot be compared with those of the data set; None where they are the same."""
    tables = [io.read_table(project / "data" / one.dataset / "samples.parquet") for project in (Path(), one.project)]
    was, now = ([[row[name] for name in SAME] for row in table] for table in tables)
    if was == now:
        return None
    same = sum(row in was for row in now)
    return f"its records are not those of {one.dataset}: {len(now)}, and there are {len(was)}; {same} have the same id, class and session"


def _verb(one: Variation, step: str) -> int:
    from stages import extract_records, manifest_records, prepare_records

    with contextlib.chdir(one.project):
        if step == "prepare":
            return prepare_records.main(one.dataset)
        if step == "manifest":
            return manifest_records.main(one.dataset)
        return extract_records.main(one.dataset, step.removeprefix("extract "))


def _copy(one: Variation) -> int:
    """The table and the lists as they are, media read where they are, and the stores that stay."""
    here, there = Path("data", one.dataset), one.project / "data" / one.dataset
    there.mkdir(parents=True, exist_ok=True)
    for name in ("samples.parquet", "manifest.json"):
        io.write_bytes(there / name, (here / name).read_bytes())
    root = root_of(here / "dataset.json").resolve().as_posix()
    io.write_json(there / "dataset.json", io.read_json(here / "dataset.json") | {"root": root})
    for store in Path("features", one.dataset).iterdir():
        if store.name not in one.encoded:
            shutil.copytree(store, one.project / store, dirs_exist_ok=True)
    return errors.OK


def _write_settings(one: Variation) -> None:
    from ruamel.yaml import YAML

    text = StringIO()
    YAML(typ="safe").dump(one.settings, text)
    one.project.mkdir(parents=True, exist_ok=True)
    io.write_text(one.project / "params.yaml", text.getvalue())


def _check_adapter(dataset: str, entry: dict[str, Any]) -> None:
    at, adapter = ("records", "datasets", dataset), entry["adapter"]
    if adapter not in record_adapters.known():
        raise ParamsError(f"{'.'.join((*at, 'adapter'))}: no adapter of records {adapter!r}{nearest(adapter, record_adapters.known())}")
    given = {name: value for name, value in entry.items() if name not in ("adapter", "source")}
    options(importlib.import_module(f"stages.datasets.{adapter}").read_records, given, at)


def _check_encoder(name: str, entry: dict[str, Any]) -> None:
    at, kind = ("records", "encoders", name), entry["kind"]
    if kind not in media.known():
        raise ParamsError(f"{'.'.join((*at, 'kind'))}: no kind of encoder {kind!r}{nearest(kind, media.known())}")
    given = {option: value for option, value in entry.items() if option != "kind"}
    options(importlib.import_module(f"stages.encoders.media.{kind}").build, given, at)


def _code(sources: Sequence[Path], adapters: Sequence[str], encoders: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Hashes of the files that a variation is made by: adapter, what it renders with, and the kinds of its encoders."""
    root = Path(stages.__file__).parent
    own = [source if source.is_absolute() else root.parent / source for source in sources]
    files = {path for source in own if source.is_relative_to(root) for path in source.rglob("*.py")}
    files |= {root / "datasets" / f"{name}.py" for name in adapters} | {
        root / "encoders/media" / f"{one['kind']}.py" for one in encoders.values()
    }
    return {path.relative_to(root).as_posix(): io.file_hash(path) for path in sorted(files)}
