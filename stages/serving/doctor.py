"""`assay doctor`: will everything run here? One line for each thing that could be in the way, and what mends it. Nothing is changed, no socket opened."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import params
from stages.datasets.record_adapters import STORED
from stages.errors import UserError
from stages.params import Params

PYTHON = (3, 11)
MEMORY_GB = 6  # the default run stays below
GIT_TIMEOUT_S = 10
MEDIA_PACKAGES = ("av", "torchaudio", "transformers")  # of the extra `records`
INSTALL = "`pip install -r requirements.lock` (docs/install.md has the way without network)"


class Finding(NamedTuple):
    name: str
    ok: bool
    found: str
    mend: str = ""  # what to do where it is not ok
    matters: bool = True  # False: something is lacking that one can do without


def examine() -> list[Finding]:
    """Everything there is to know of this machine and of the project in the current folder."""
    try:
        settings, project = params.load(), Finding("project", True, "params.yaml is valid")
    except UserError as error:
        settings = None
        project = Finding("project", False, str(error).replace("\n", "; "), "run where params.yaml lies, and mend what it says")
    machine = [_python(), _torch(settings), _memory(), _disk(settings), _cores(settings), *_packages()]
    of_project = [*_sources(settings), _weights(settings), *_records(settings)] if settings else []
    return [*machine, project, *of_project, _dvc(), _git(), Finding("network", True, "not needed: no stage and no command opens a socket")]


def render(findings: list[Finding]) -> str:
    """One line each, and a last one that sums up."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{_mark(finding)}  {finding.name:{width}}  {_text(finding)}" for finding in findings]
    bad = sum(not finding.ok and finding.matters for finding in findings)
    return "\n".join([*lines, "", "everything will run here" if not bad else f"{bad} of {len(findings)} lines need mending"])


def _mark(finding: Finding) -> str:
    return "ok  " if finding.ok else "MEND" if finding.matters else "note"


def _text(finding: Finding) -> str:
    return finding.found if finding.ok else f"{finding.found}. Mend: {finding.mend}"


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", sys.version_info >= PYTHON, found, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def _torch(settings: Params | None) -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it links to
        return Finding("torch", False, f"cannot be imported ({error})", INSTALL)
    asked, cuda = settings.compute.device if settings else "cpu", torch.cuda.is_available()
    have = f"CUDA device {torch.cuda.get_device_name()}" if cuda else "no CUDA device"
    found = f"{torch.__version__}, {have}, compute.device is {asked}"
    known = asked in ("cpu", "cuda", "auto")
    return Finding("torch", known and (asked != "cuda" or cuda), found, "set compute.device in params.yaml to cpu or auto")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}; the default run needs up to {MEMORY_GB}"
    return Finding("memory", memory.available >= MEMORY_GB * 1e9, found, "close other programs, or lower compute.processes in params.yaml")


def _disk(settings: Params | None) -> Finding:
    free, budget = shutil.disk_usage(Path()).free / 1e9, settings.features.budget_gb if settings else 0.0
    found = f"{free:.1f} GB free; one feature store may take features.budget_gb = {budget:g}" if settings else f"{free:.1f} GB free"
    return Finding("disk", free >= max(budget, 1.0), found, "free some space, or lower features.budget_gb in params.yaml: above it features are streamed")


def _cores(settings: Params | None) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = settings.compute.processes * settings.compute.threads if settings else 1
    found = f"{cores}; compute.processes x compute.threads = {asked}"
    return Finding("cores", asked <= cores, found, f"lower compute.processes in params.yaml to {cores}", matters=False)


def _packages() -> Iterator[Finding]:
    """What Assay cannot do without, as one line; then each package that an extra brings."""
    from importlib import metadata

    wrong = [text for requirement in _requirements() if (text := _unmet(requirement))]
    yield Finding("packages", not wrong, "; ".join(wrong) or "all here in the versions asked for", INSTALL)
    for name, extra, use in (("dvc", "pipeline", "`dvc repro`"), ("mlflow", "track", "the verb `track`")):
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, f"not installed; {use} needs it", f"`pip install 'assay[{extra}]'`", matters=extra == "pipeline")


def _requirements() -> list[str]:
    """What the installed distribution asks for without extras, e.g. "torch<2.15,>=2.14"; of a bare checkout, what its pyproject.toml says."""
    import tomllib
    from importlib import metadata

    checkout = Path(__file__).parents[2] / "pyproject.toml"
    if checkout.is_file():
        return tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"]
    try:
        return [line for line in metadata.requires("assay") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return []


def _unmet(requirement: str) -> str | None:
    """What is wrong with one requirement; it may have lower and upper bounds, the only ones that pyproject.toml uses."""
    from importlib import metadata

    name = re.match(r"[\w.-]+", requirement).group()
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    low, high = (re.search(rf"{sign}\s*([\d.]+)", requirement) for sign in (">=", "<"))
    fits = (not low or _numbers(have) >= _numbers(low[1])) and (not high or _numbers(have) < _numbers(high[1]))
    return None if fits else f"{name} is {have}, wanted {requirement.removeprefix(name).strip()}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version).group().split("."))


def _sources(settings: Params) -> Iterator[Finding]:
    absent = [f"{name} ({entry.source})" for name, entry in settings.datasets.items() if not Path(entry.source).exists()]
    found = f"sources of {len(settings.datasets) - len(absent)}/{len(settings.datasets)} are here"
    more = f"; not: {', '.join(absent)}" if absent else ""
    yield Finding("data sets", not absent, found + more, "correct `source` in params.yaml, or remove the data set and its runs")


def _weights(settings: Params) -> Finding:
    """Those that the encoders of params.yaml need; random ones need no file."""
    from stages.detectors.zoo import weights_of
    from stages.encoders import weights

    wanted = sorted({name for entry in settings.encoders.values() for name in weights_of(entry.options)} - {weights.RANDOM})
    mends = []
    for name in wanted:
        try:
            weights.resolve(name, settings.backbones_folder)
        except (weights.WeightsMissing, weights.WeightsAltered) as error:
            mends.append(str(error))
    found = f"{len(wanted) - len(mends)}/{len(wanted)} of those that params.yaml names are here and unaltered"
    return Finding("weights", not mends, found, " ".join(mends))


def _records(settings: Params) -> Iterator[Finding]:
    """Where params.yaml has records of raw media: what reads the media, then the weights of their encoders, without which models lack a modality."""
    from importlib import metadata

    from stages.encoders.media import FACTS

    used = {extract.encoder for extract in settings.records.extracts.values() if extract.modality != STORED} if settings.records else set()
    used -= {name for name in used if name in settings.records.encoders and settings.records.encoders[name].kind == FACTS}
    if not used:
        return
    here = {name: next((one.version for one in metadata.distributions(name=name)), None) for name in MEDIA_PACKAGES}
    absent = [name for name, version in here.items() if version is None]
    found = f"not installed: {', '.join(absent)}" if absent else ", ".join(f"{name} {version}" for name, version in here.items())
    yield Finding("media", not absent, found, "`pip install 'assay[records]'`, which brings what reads films, sounds and notes of records")
    wrong = dict(_unknown_encoders(settings, sorted(used)))
    if wrong:
        yield Finding("media encoders", False, f"params.yaml: {'; '.join(wrong.values())}", "correct records.encoders and records.extracts")
    if not absent:
        yield _record_weights(settings, sorted(used - set(wrong)))


def _unknown_encoders(settings: Params, encoders: list[str]) -> Iterator[tuple[str, str]]:
    """Those that params.yaml has no entry for, or that are of no kind, and what is wrong."""
    from stages.encoders import media

    for name in encoders:
        entry = settings.records.encoders.get(name)
        if entry is None:
            yield name, f"there is no encoder {name!r} in records.encoders{params.nearest(name, settings.records.encoders)}"
        elif entry.kind not in media.known():
            yield name, f"records.encoders.{name} has the kind {entry.kind!r}{params.nearest(entry.kind, media.known())}"


def _record_weights(settings: Params, encoders: list[str]) -> Finding:
    from importlib import import_module

    from stages.encoders import weights
    from stages.encoders.media import pretrained

    mends, wanted = [], 0
    for entry in (settings.records.encoders[name] for name in encoders):
        option = params.fields_of(import_module(f"stages.encoders.media.{entry.kind}").build).get("weights")
        name = entry.options.get("weights", option[1] if option else None)
        if name in (None, weights.RANDOM):
            continue
        wanted += 1
        try:
            weights.resolve(name, settings.backbones_folder) if entry.kind == "frames" else pretrained.find(name, name, settings.backbones_folder)
        except UserError as error:  # absent, altered, or only in a form that could run code
            mends.append(str(error))
    found = f"{wanted - len(mends)}/{wanted} of those that encoders of records need are here"
    return Finding("media weights", not mends, found, " ".join([*mends, "Without them models do without the modality"]), matters=False)


def _dvc() -> Finding:
    if not Path(".dvc").is_dir():
        return Finding("dvc project", False, "no .dvc folder here", "`dvc init` (with --no-scm outside git)", matters=Path("dvc.yaml").is_file())
    lock = Path("dvc.lock")
    if not lock.is_file():
        return Finding("dvc project", True, "nothing has run yet: `dvc repro`")
    if _torn(lock):
        mend = "`git checkout dvc.lock`, or `rm dvc.lock`; then `dvc repro`, which takes what had run from its cache"
        return Finding("dvc project", False, "dvc.lock is not whole: DVC was killed while it wrote the file", mend)
    return Finding("dvc project", True, "with a dvc.lock: `dvc status` says what is out of date")


def _torn(lock: Path) -> bool:
    """Whether DVC would refuse its own lock. It writes the file in place, so that a kill may leave a part of it."""
    try:
        content = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))
        return not all("cmd" in stage for stage in content["stages"].values())
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return True


def _git() -> Finding:
    mend = "`git init`; without it `dvc exp` has nothing to compare with"
    if shutil.which("git") is None:
        return Finding("git", False, "not installed", "install git; without it `dvc exp` does not work", matters=False)
    try:
        done = subprocess.run(["git", "status", "--porcelain", "--branch"], capture_output=True, text=True, timeout=GIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("git", False, f"`git status` took more than {GIT_TIMEOUT_S} s", "run `git gc`, or exclude large folders", matters=False)
    if done.returncode:
        return Finding("git", False, "this folder is not in a repository", mend, matters=False)
    branch, *changed = done.stdout.splitlines()
    return Finding("git", True, f"{branch.removeprefix('## ')}, {len(changed)} files changed" if changed else f"{branch.removeprefix('## ')}, clean")
