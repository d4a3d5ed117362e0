"""`assay add DIR`: one folder of images becomes entries in params.yaml, and deps of the stages that look at every data set in dvc.yaml.

A new data set is treated as one that is already there: same encoders, same models, same seeds; named configurations (`assay models list`) can be
asked for as well, here or later with `assay models add`. Comments and order of the files stay.
"""

from __future__ import annotations

import io as streams
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io, params
from stages.datasets import record_adapters
from stages.datasets.check import layout_of
from stages.datasets.record_adapters import STORED
from stages.datasets.tiles import in_tiles
from stages.detectors import zoo
from stages.params import Params, ParamsError, RecordTask, nearest
from stages.serving import record_check

DVC = Path("dvc.yaml")
NAME = r"[a-z0-9][a-z0-9_-]*"
TAKEN = ("bench", "ensemble", "report", "search", "track")  # folders of metrics/ that are no data set


class Added(NamedTuple):
    name: str
    adapter: str
    source: str
    extracts: list[str]  # none for signals, which no encoder sees
    runs: list[str]
    deps: dict[str, list[str]]  # stage of dvc.yaml -> deps it was given
    predict: str  # a command that judges something new


def add(
    directory: Path,
    name: str | None = None,
    adapter: str | None = None,
    models: Sequence[str] = (),
    schedule: zoo.Schedule = "full",
    canvas: tuple[int, int] | None = None,
    overlap: int | None = None,
) -> Added:
    """Write the entries. name: of the folder by default. models: all that are in use by default. schedule: of named configurations.
    canvas, overlap: images are cut into tiles (stages/datasets/tiles.py), with encoders of `pixels` of their own.

    Raises ParamsError for a name that is taken or cannot be one, for an unknown model; DataError where no layout fits. Then nothing is written.
    """
    settings = params.load()
    name = _checked_name(settings, name, directory)
    adapter = adapter or layout_of(directory)
    named = [model for model in models if model not in settings.models and model in [*zoo.names(), *zoo.few_shot_names(), *zoo.aliases()]]
    runs = _templates(settings, [model for model in models if model not in named]) if len(named) < len(models) or not models else {}
    source = _source(directory)
    content = _yaml().load(params.PATH.read_text(encoding="utf-8"))
    sections: dict[str, dict[str, Any]] = {
        "datasets": {name: {"adapter": adapter, "source": source}},
        "extracts": {
            f"{name}-{key}": _renamed(content["extracts"][known], name) for key, known in _needed_extracts(settings, runs).items()
        },
        "runs": {f"{name}-{model}": _renamed(content["runs"][known], name) for model, known in runs.items()},
    }
    for model in named:
        _merge(sections, _configuration(settings, name, model, schedule))
    if canvas:
        _cut(sections, settings, canvas, overlap)
    _write(sections)
    deps = _add_deps(name, list(settings.datasets))
    return Added(name, adapter, source, list(sections["extracts"]), list(sections["runs"]), deps, f"assay predict --dataset {name} IMAGE...")


def add_signals(directory: Path, name: str | None = None, adapter: str = "signal_folder", models: Sequence[str] = ()) -> Added:
    """Write the entries of a data set of signals, with the models that the others have. models: only these of `series.models`.

    Raises ParamsError for a name that is taken or cannot be one, or for an unknown model; then nothing is written.
    """
    settings = params.load()
    signals, name, source = settings.signals, _checked_name(settings, name, directory), _source(directory)
    for model in models:
        signals.entry("models", model)
    content = _yaml().load(params.PATH.read_text(encoding="utf-8"))["series"]["runs"]
    known = {entry.model: run for run, entry in reversed(signals.runs.items())}
    runs = {f"{name}-{model}": _renamed(content[run], name) for model, run in reversed(known.items()) if not models or model in models}
    _write({"series.datasets": {name: {"adapter": adapter, "source": source}}, "series.runs": runs})
    follow = f"assay predict STREAM.csv --dataset {name} --follow"
    return Added(name, adapter, source, [], list(runs), _add_deps(name, list(signals.datasets)), follow)


def add_records(directory: Path, name: str | None = None, adapter: str | None = None, models: Sequence[str] = ()) -> Added:
    """Write the entries of a data set of records: `.pt` files of tokens, or raw media, each modality with the encoder that its layout asks for, else with
    that of other data sets.

    adapter: by default the one that knows the layout, stored_records where there are `.pt` files, else media_folder. models: only these of
    `records.models`; by default those that another data set has, of which no row asks for a modality that is not here. Raises ParamsError for a name that
    is taken or cannot be one, or for a model that is unknown or asks for such a modality, DataError where there are no records; then nothing is written.
    """
    settings = params.load()
    task, name, source = settings.record_task, _checked_name(settings, name, directory), _source(directory)
    for model in models:
        task.entry("models", model)
    adapter = adapter or record_check.adapter_of(directory)
    examined = record_check.examine(directory, adapter, name)
    modalities = examined.modalities
    encoders, controls = _record_encoders(task, examined, name)
    extracts = {
        f"{name}-{modality}": {"dataset": name, "modality": modality, "encoder": encoder, "code": f"stages/encoders/media/{entry['kind']}.py"}
        | ({"control": True} if modality in controls else {})
        for modality, (encoder, entry) in encoders.items()
    }
    content = _yaml().load(params.PATH.read_text(encoding="utf-8"))["records"]["runs"]
    known = {entry.model: run for run, entry in reversed(task.runs.items())}
    fitting = _fitting(task, [model for model in reversed(known) if not models or model in models], {*encoders, *examined.widths}, asked=models)
    runs = {f"{name}-{model}": _renamed(content[known[model]], name) for model in fitting}
    new = {encoder: entry for encoder, entry in encoders.values() if encoder not in task.encoders}
    own = {"datasets": {name: {"adapter": adapter, "source": source}}, "encoders": new, "extracts": extracts, "runs": runs}
    _write({f"records.{section}": entries for section, entries in own.items()})
    media = "RECORD.pt" if list(modalities) == [STORED] else " ".join(f"{modality}=FILE" for modality in modalities)
    return Added(
        name, adapter, source, list(extracts), list(runs), _add_deps(name, list(task.datasets)), f"assay predict --dataset {name} {media}"
    )


def _record_encoders(task: RecordTask, examined: record_check.Examined, name: str) -> tuple[dict[str, tuple[str, dict[str, Any]]], list[str]]:
    """By modality the name and the entry of its encoder, controls last, and which modalities are controls: those whose facts are all here."""
    asked, controls = record_adapters.suited(examined.adapter)
    told = {
        modality: entry for modality, entry in controls.items() if {*entry.get("nominal", ()), *entry.get("hashed", ())} <= set(examined.facts)
    }
    found = {
        modality: (f"{name}-{modality}", asked[modality]) if modality in asked else record_check.encoder_for(task, modality, examined.kinds[modality])
        for modality in examined.modalities
    }
    return found | {modality: (f"{name}-{modality}", entry) for modality, entry in told.items()}, list(told)


def _fitting(task: RecordTask, known: Sequence[str], here: set[str], asked: Sequence[str]) -> list[str]:
    """Those models whose rows are shown no modality that is not `here`. Raises ParamsError for one of `asked` that is none of them."""
    lacks = {model: {name for row in task.rows(model).values() for name in row.modalities or ()} - here for model in known}
    if unfit := next((model for model in asked if lacks.get(model)), None):
        raise ParamsError(f"{unfit} has rows that are shown {', '.join(sorted(lacks[unfit]))}; there are {', '.join(sorted(here))}. Name another --model")
    return [model for model in known if not lacks[model]]


def add_models(dataset: str, models: Sequence[str], schedule: zoo.Schedule = "full") -> list[str]:
    """Write runs of named configurations on a data set that params.yaml has, with the encoders that they need. Returns the names of the runs."""
    settings = params.load()
    settings.entry("datasets", dataset)
    sections: dict[str, dict[str, Any]] = {"runs": {}}
    for model in models:
        _merge(sections, _configuration(settings, dataset, model, schedule))
    _write(sections)
    return list(sections["runs"])


def _configuration(settings: Params, dataset: str, name: str, schedule: zoo.Schedule) -> dict[str, dict[str, Any]]:
    """By section, the entries that one configuration needs on one data set, without those that are there already."""
    name, configuration = zoo.find(name)
    if f"{dataset}-{name}" in settings.runs or name in settings.models:
        raise ParamsError(
            f"{params.PATH} has a model or run of the name {name!r} already. Rename it there first: models are told apart by name"
        )
    entries = zoo.entries(name, schedule)
    encoder = entries.encoder_name
    code = f"stages/detectors/{configuration.detector.replace('.', '/')}.py"
    maths = f"stages/detectors/{configuration.detector.split('.')[0]}/maths"
    encoders = {entries.pixels_name: entries.pixels, encoder: entries.encoder}
    reads = {entries.pixels_name: f"data/{dataset}/samples.parquet"} | {encoder: f"features/{dataset}/{entries.pixels_name}"}
    reads[entries.pixels_name] = f"data/{dataset}/samples.parquet"
    extracts = {
        f"{dataset}-{one}": {
            "dataset": dataset,
            "encoder": one,
            "reads": reads[one],
            "code": Path("stages/encoders", zoo.code_of(encoders[one])).as_posix(),
        }
        for one in encoders
    }
    run = {
        "dataset": dataset, "model": name, "encoder": encoder, "pixels": entries.pixels_name, "code": code,
        "maths": maths if (Path(__file__).parents[2] / maths).is_dir() else code,
    }  # fmt: skip
    return {
        "encoders": {one: entry for one, entry in encoders.items() if one not in settings.encoders},
        "extracts": {one: entry for one, entry in extracts.items() if one not in settings.extracts},
        "models": {name: entries.model},
        "runs": {f"{dataset}-{name}": run},
    }


def _cut(sections: dict[str, dict[str, Any]], settings: Params, canvas: tuple[int, int], overlap: int | None) -> None:
    """Put encoders of `pixels` that cut images into tiles in the place of those that the new extracts and runs name."""
    encoders = sections.setdefault("encoders", {})
    known = {name: entry.model_dump() for name, entry in settings.encoders.items()} | encoders
    tiled: dict[str, str] = {}  # encoder of pixels -> the one that takes its place
    for plain in dict.fromkeys(run["pixels"] for run in sections["runs"].values()):
        tiled[plain], entry = in_tiles(plain, known[plain], canvas, overlap)
        encoders.pop(plain, None)
        there = known.get(tiled[plain], entry)
        if there != entry:
            raise ParamsError(
                f"{params.PATH} has an encoder {tiled[plain]} already, with overlap {there.get('overlap')} and image_size {there.get('image_size')}: "
                f"say --overlap {there.get('overlap')}, or rename it there first"
            )
        encoders |= {tiled[plain]: entry} if tiled[plain] not in settings.encoders else {}
    for run in sections["runs"].values():
        run |= {field: tiled.get(run[field], run[field]) for field in ("encoder", "pixels")}
    for key, extract in list(sections["extracts"].items()):
        dataset, encoder = extract["dataset"], tiled.get(extract["encoder"], extract["encoder"])
        folders = {f"features/{dataset}/{plain}": f"features/{dataset}/{name}" for plain, name in tiled.items()}
        extract |= {"encoder": encoder, "reads": folders.get(extract["reads"], extract["reads"])}
        sections["extracts"][f"{dataset}-{encoder}"] = sections["extracts"].pop(key)


def _merge(sections: dict[str, dict[str, Any]], more: dict[str, dict[str, Any]]) -> None:
    for section, entries in more.items():
        sections.setdefault(section, {}).update(entries)


def _write(sections: dict[str, dict[str, Any]]) -> None:
    text = params.PATH.read_text(encoding="utf-8")
    for section, entries in sections.items():
        if entries:
            text = _with_entries(text, section, entries)
    io.write_text(params.PATH, text)


def render(added: Added) -> str:
    """What was written, and what to do next."""
    lines = [f"{added.name}: added to {params.PATH} (adapter {added.adapter}, source {added.source})"]
    lines += [f"  extracts: {', '.join(added.extracts)}"] if added.extracts else []
    lines += [f"  runs:     {', '.join(added.runs)}"]
    lines += [f"  {DVC}: {stage} depends on {', '.join(deps)}" for stage, deps in added.deps.items()]
    steps = ["dvc repro", "assay leaderboard", added.predict]
    return "\n".join([*lines, "", "next:", *(f"  {step}" for step in steps)])


def _checked_name(settings: Params, name: str | None, directory: Path) -> str:
    wanted = name or re.sub(r"[^a-z0-9_-]+", "-", directory.resolve().name.split(".")[0].lower()).strip("-_")
    if not re.fullmatch(NAME, wanted):
        raise ParamsError(f"{wanted!r} cannot name a data set: small letters, digits, - and _ only. Say --name parts")
    tasks = [settings, *(task for task in (settings.series, settings.records) if task)]
    taken = [*(dataset for task in tasks for dataset in task.datasets), *TAKEN]
    if wanted in taken:
        raise ParamsError(f"{wanted!r} is taken ({', '.join(taken)}). Say --name with another one")
    return wanted


def _source(directory: Path) -> str:
    """Relative to the project where it lies inside, else absolute."""
    absolute = directory.resolve()
    return absolute.relative_to(Path.cwd()).as_posix() if absolute.is_relative_to(Path.cwd()) else absolute.as_posix()


def _templates(settings: Params, models: Sequence[str]) -> dict[str, str]:
    """Model -> a run that uses it on another data set."""
    known: dict[str, str] = {}
    if not settings.runs:
        raise ParamsError(f"{params.PATH} has no runs to go by. Write one by hand (docs/datasets.md)")
    for run, entry in settings.runs.items():
        known.setdefault(entry.model, run)
    for model in models:
        if model not in known:
            raise ParamsError(f"no run of {params.PATH} uses a model {model!r}{nearest(model, [*known, *zoo.names(), *zoo.few_shot_names(), *zoo.aliases()])}")
    return {model: run for model, run in known.items() if not models or model in models}


def _needed_extracts(settings: Params, runs: dict[str, str]) -> dict[str, str]:
    """Encoder -> an extract that runs it: those that the runs name, `pixels` among them."""
    by_encoder: dict[str, str] = {}
    for name, extract in settings.extracts.items():
        by_encoder.setdefault(extract.encoder, name)
    wanted = {encoder for run in runs.values() for encoder in (settings.runs[run].encoder, settings.runs[run].pixels)}
    return {encoder: name for encoder, name in by_encoder.items() if encoder in wanted}


def _renamed(entry: Any, name: str) -> dict[str, Any]:
    """An entry of another data set with this name in its place. Comments beside it speak of the other one and stay there."""
    other = entry["dataset"]
    plain = {key: list(value) if isinstance(value, list) else value for key, value in entry.items()}
    return {key: _for(value, other, name) for key, value in plain.items()}


def _for(value: Any, other: str, name: str) -> Any:
    """Only what is the data set's name, or a path that runs through its folder, is changed."""
    if not isinstance(value, str) or value.split("/", 1)[0] == "stages":
        return value
    return "/".join(name if part == other else part for part in value.split("/"))


def _add_deps(name: str, others: Sequence[str]) -> dict[str, list[str]]:
    """Give stages without a table (report, track) the deps on the new data set that they have on the last of the others of its task."""
    if not DVC.is_file():
        return {}
    text = DVC.read_text(encoding="utf-8")
    lines, added = text.splitlines(keepends=True), {}
    for stage, entry in reversed(list(_yaml().load(text)["stages"].items())):  # from the end, so that line numbers stay true
        deps = entry.get("deps") or []
        known = [dataset for dataset in others if any(_mentions(dep, dataset) for dep in deps)]
        if "foreach" in entry or not known:
            continue
        places = [place for place, dep in enumerate(deps) if _mentions(dep, known[-1])]
        for place in reversed(places):
            line = deps.lc.item(place)[0]
            lines.insert(line + 1, lines[line].replace(deps[place], _for(deps[place], known[-1], name), 1))
        added[stage] = [_for(deps[place], known[-1], name) for place in places]
    if added:
        io.write_text(DVC, "".join(lines))
    return dict(reversed(list(added.items())))


def _mentions(dep: Any, dataset: str) -> bool:
    return isinstance(dep, str) and dataset in dep.split("/")[1:] and not dep.startswith("stages/")


def _with_entries(text: str, section: str, entries: dict[str, Any]) -> str:
    """The text of a YAML file with entries put at the end of one of its tables, e.g. "runs" or "series.runs"; every other byte stays as it is."""
    table, lines = _yaml().load(text), f"{text.rstrip()}\n".splitlines(keepends=True)
    end = len(lines)
    for key in section.split("."):
        keys = list(table)
        following = keys[keys.index(key) + 1 :]
        end = table.lc.key(following[0])[0] if following else end
        table = table[key]
    while lines[end - 1].strip() == "" or lines[end - 1].startswith("#"):  # these lead up to the next table
        end -= 1
    indent = " " * next(iter(table.lc.data.values()))[1]
    return "".join([*lines[:end], *(f"{indent}{line}\n" for line in _dumped(entries).splitlines()), *lines[end:]])


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _dumped(content: dict[str, Any]) -> str:
    text = streams.StringIO()
    _yaml().dump(content, text)
    return text.getvalue()
