"""`assay pipeline NAME`: a pipeline of its own for a large data set, with every named configuration, in pipelines/<name>/.

The root dvc.yaml is the default run; DVC rewrites the whole dvc.lock after each stage, so a data set with all configurations has locks of its own:
one for data and features (dvc.yaml), one for models and results (runs/dvc.yaml). Stages and settings are those of the root's dvc.yaml and
params.yaml; the verbs run in pipelines/<name>/, where its params.yaml, data/, features/, models/ and metrics/ lie. The files are written where they are
wanted and not part of the repository: DVC reads every dvc.yaml below the root at each command, and these have over a hundred stages.
"""

from __future__ import annotations

import io as streams
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets import adapters
from stages.detectors import zoo
from stages.params import ParamsError, nearest
from stages.serving.add import TAKEN

ROOT = "../../"  # from where the verbs run
FEATURES, RUNS = ("prepare", "extract", "manifest"), ("train", "evaluate", "ensemble", "bench", "report", "track")
TRIVIAL = "trivial"
OWN = ("records", "series")  # folders of pipelines/ that the default run has


def write(name: str, source: str, adapter: str, schedule: zoo.Schedule = "full", project: Path = Path()) -> list[Path]:
    """Write the three files, over those of an earlier call; returns their paths.

    source: the data, as seen from pipelines/<name>. Raises ParamsError for an unknown schedule or adapter, or an unfit name; then nothing is written.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ParamsError(f"{name!r} cannot name a pipeline: letters, digits, - and _ only")
    if name in OWN:
        raise ParamsError(f"pipelines/{name} belongs to the default run: choose another name")
    if adapter not in adapters.known():
        raise ParamsError(f"no adapter {adapter!r}{nearest(adapter, adapters.known())}")
    folder = project / "pipelines" / name
    stages = _load(project / "dvc.yaml")["stages"]
    files = {
        folder / "params.yaml": settings(name, source, adapter, schedule, _load(project / params.PATH)),
        folder / "dvc.yaml": {"stages": {verb: _moved(stages[verb], name) for verb in FEATURES}},
        folder / "runs/dvc.yaml": {"vars": ["../params.yaml"], "stages": {verb: _moved(stages[verb], name, wdir="..") for verb in RUNS}},
    }
    for path, content in files.items():
        io.write_text(path, f"# Written by `assay pipeline {name}`; a new call writes it anew.\n{_dumped(content)}")
    return list(files)


def settings(name: str, source: str, adapter: str, schedule: zoo.Schedule, root: dict[str, Any]) -> dict[str, Any]:
    """The content of params.yaml: the root's sections, one data set, every configuration, and the trivial rows."""
    content = {
        **root,
        "datasets": {name: {"adapter": adapter, "source": source}},
        "encoders": {},
        "extracts": {},
        "models": {},
        "runs": {},
        "tracking": root["tracking"] | {"uri": root["tracking"]["uri"].replace("sqlite:///", f"sqlite:///{ROOT}")},
    }
    for configuration in zoo.names():
        entries = zoo.entries(configuration, schedule)
        encoder = entries.encoder_name
        content["encoders"] |= {entries.pixels_name: entries.pixels, encoder: entries.encoder}
        content["models"][configuration] = entries.model
        content["runs"][f"{name}-{configuration}"] = _run(name, configuration, encoder, entries.pixels_name, entries.model["detector"])
    content["models"][TRIVIAL] = root["models"][TRIVIAL]
    pixels = zoo.pixels_name(256)
    code = f"{ROOT}stages/detectors/trivial"
    content["runs"][f"{name}-{TRIVIAL}"] = {**_run(name, TRIVIAL, pixels, pixels, ""), "code": code, "maths": code}
    for encoder, entry in sorted(content["encoders"].items(), key=lambda item: item[1]["kind"] != zoo.PIXELS):
        own = zoo.pixels_name(entry["image_size"])
        reads = f"data/{name}/samples.parquet" if encoder == own else f"features/{name}/{own}"
        code = f"{ROOT}{Path('stages/encoders', zoo.code_of(entry)).as_posix()}"
        content["extracts"][f"{name}-{encoder}"] = {"dataset": name, "encoder": encoder, "reads": reads, "code": code}
    return content


def _run(dataset: str, model: str, encoder: str, pixels: str, detector: str) -> dict[str, str]:
    family, _, file = detector.partition(".")
    maths = f"stages/detectors/{family}/maths"
    code = f"stages/detectors/{family}/{file}.py"
    shared = maths if (Path(__file__).parents[2] / maths).is_dir() else code
    return {"dataset": dataset, "model": model, "encoder": encoder, "pixels": pixels, "code": ROOT + code, "maths": ROOT + shared}


def _moved(stage: dict[str, Any], name: str, wdir: str | None = None) -> dict[str, Any]:
    """A stage of the root as it stands two folders deeper; what it names of the root's data sets, it names of this one.

    wdir: for a file that lies deeper than where the verbs run.
    """
    body = stage.get("do", stage)
    own = [dep for dep in body["deps"] if not _of_a_data_set(dep)]
    for dep in body["deps"]:
        if _of_a_data_set(dep):
            parts = dep.split("/")
            own.append("/".join([parts[0], name, *parts[2:]]))
    moved = {**({"wdir": wdir} if wdir else {}), **body, "deps": [f"{ROOT}{dep}" if dep.startswith("stages/") else dep for dep in dict.fromkeys(own)]}
    return {**stage, "do": moved} if "do" in stage else moved


def _of_a_data_set(dep: str) -> bool:
    """Whether the dep is written out for one of the root's data sets, as those of report and track are."""
    parts = dep.split("/")
    return parts[0] in ("metrics", "models", "data", "features") and len(parts) > 1 and not parts[1].startswith("${") and parts[1] not in TAKEN


def _load(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(io.require(path))


def _dumped(content: dict[str, Any]) -> str:
    """Lists in block style, as `dvc exp run` would write them."""
    from ruamel.yaml import YAML

    yaml, text = YAML(), streams.StringIO()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.default_flow_style = False
    yaml.representer.ignore_aliases = lambda *_: True
    yaml.dump(content, text)
    return text.getvalue()
