"""A project made to order: one data set, the models asked for, in a folder that the verbs can work in as they do in a checkout.

Its name is the hash of all that data, features and splits depend on, so that models asked for one after the other share what is stored, and a new
image or another image size starts afresh. Models, encoders and settings come from one params.yaml: of the current folder, else of the checkout.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import stages
from stages import detectors, io, params
from stages.datasets import adapters
from stages.datasets.check import layout_of
from stages.datasets.tiles import in_tiles
from stages.detectors import zoo
from stages.params import ParamsError, nearest

CODE = Path(stages.__file__).parent
ARCHIVES = (".tar.xz", ".tar.gz", ".tar", ".zip")


class Settings(NamedTuple):
    """What `set_globals` sets. None: as params.yaml has it."""

    dataset_dir: Path | None = None
    backbone_dir: Path | None = None
    output_dir: Path | None = None
    seed: int = 42
    num_workers: int = 8


class Overrides(NamedTuple):
    """What one call changes in the entries of its models and encoders. None: as params.yaml has it."""

    num_epochs: int | None = None
    batch_size: int | None = None
    img_size: int | None = None
    normalize: bool | None = None
    canvas: int | tuple[int, int] | None = None  # height and width at which images are cut into tiles of img_size
    overlap: int | None = None


class Workspace(NamedTuple):
    folder: Path
    dataset: str
    extracts: list[str]  # encoders to run, pixels first
    runs: dict[str, str]  # run -> model


def home(settings: Settings) -> Path:
    """Where all workspaces lie."""
    return (settings.output_dir or Path()) / ".assay" / "projects"


def make(
    settings: Settings,
    dataset: str,
    categories: Sequence[str] | None,
    models: Sequence[str],
    asked: Overrides,
    schedule: zoo.Schedule = "full",
) -> Workspace:
    """Write the params.yaml of the workspace; what other models were asked for in it before stays there.

    categories: None for all. schedule: of models that are named configurations; those of params.yaml have their own.
    Raises ParamsError with the nearest name where data set or model is unknown.
    """
    template, root = template_of()
    _require_images(template, dataset)
    plans = {model: _in_tiles(plan_of(template, model, schedule, asked), asked) for model in _known(template, models)}
    for plan in plans.values():
        _require_normalize(plan.encoder_entry, plan.encoder, asked.normalize)
    entry = _dataset(template, root, settings, dataset)
    content = _shared(template, root, settings, dataset, entry, categories, asked.img_size)
    tiles = [[asked.canvas, asked.overlap]] if asked.canvas else []  # the names of encoders say nothing of the overlap
    return _written(home(settings), dataset, content, plans, tiles)


def make_planned(
    settings: Settings,
    dataset: str,
    entry: dict[str, Any],
    categories: Sequence[str] | None,
    plans: dict[str, Plan],
    changes: dict[str, dict[str, Any]],
) -> Workspace:
    """`make` for models whose entries are given. entry: of the data set, with an absolute source. changes: to other sections of params.yaml."""
    template, root = template_of()
    content = _shared(template, root, settings, dataset, entry, categories, None)
    for section, keys in changes.items():
        content[section] = content[section] | keys
    encoders = [[plan.encoder_entry, plan.pixels_entry] for plan in plans.values()]  # which their names need not tell apart
    return _written(home(settings), dataset, content, plans, encoders)


def _written(above: Path, dataset: str, content: dict[str, Any], plans: dict[str, Plan], apart: list[Any]) -> Workspace:
    """The workspace of `content` and these models, in a folder below `above`. apart: what else tells workspaces apart."""
    shared = {section: content[section] for section in ("datasets", "encoders", "protocol", "features", "backbones")}
    files = [_fingerprint(path) for path in (Path(content["datasets"][dataset]["source"]), CODE)]
    folder = above / io.content_hash([shared, content["compute"]["device"], files, *apart])[:16]
    extracts: dict[str, str] = {}  # encoder -> what it reads; pixels first
    for plan in plans.values():
        content["encoders"] |= {plan.pixels: plan.pixels_entry, plan.encoder: plan.encoder_entry}
        extracts = {plan.pixels: f"data/{dataset}/samples.parquet"} | extracts
    for plan in plans.values():
        extracts.setdefault(plan.encoder, f"features/{dataset}/{plan.pixels}")
    for encoder, reads in extracts.items():
        code = (CODE / "encoders" / zoo.code_of(content["encoders"][encoder])).as_posix()
        content["extracts"][f"{dataset}-{encoder}"] = {"dataset": dataset, "encoder": encoder, "reads": reads, "code": code}
    for model, plan in plans.items():
        content["models"][model] = plan.entry
        content["runs"][f"{dataset}-{model}"] = _run(dataset, model, plan)
    _write(folder / params.PATH, content)
    return Workspace(folder, dataset, list(extracts), {f"{dataset}-{model}": model for model in plans})


def _require_images(template: dict[str, Any], dataset: str) -> None:
    """Names of data sets are unique over all tasks, and only that of images is trained from Python."""
    for task, what in (("series", "signals"), ("records", "records")):
        if dataset in (template.get(task) or {}).get("datasets", {}):
            raise ParamsError(
                f"{dataset} is a data set of {what} in {params.PATH}; from Python images alone are trained. Run `assay train {dataset}`, then "
                f"`assay evaluate {dataset}`"
            )


class Plan(NamedTuple):
    """One model with its encoder, as entries of params.yaml."""

    entry: dict[str, Any]
    encoder: str
    encoder_entry: dict[str, Any]
    pixels: str
    pixels_entry: dict[str, Any]


def _in_tiles(plan: Plan, asked: Overrides) -> Plan:
    """The plan with images cut into tiles, where a canvas is asked for."""
    if asked.canvas is None:
        return plan
    name, entry = in_tiles(plan.pixels, plan.pixels_entry, asked.canvas, asked.overlap)
    if plan.encoder == plan.pixels:
        plan = plan._replace(encoder=name, encoder_entry=entry)
    return plan._replace(pixels=name, pixels_entry=entry)


def registry(template: dict[str, Any] | None = None) -> list[str]:
    """Every model by name: the entries of params.yaml, rows of groups on their own, then the named configurations, then any other detector."""
    return list(detectors_by_name(template or template_of()[0]))


def detectors_by_name(template: dict[str, Any]) -> dict[str, str]:
    """The detector behind every name of `registry`."""
    own = {name: entry["detector"] for name, entry in _own_entries(template).items()}
    used = {*own.values(), *zoo.zoo().methods}
    others = {_plain_name(detector): detector for detector in detectors.known() if detector not in used}
    return {**own, **{name: zoo.find(name)[1].detector for name in zoo.names() if name not in own}, **others}


def _own_entries(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, entry in template["models"].items():
        found |= entry["rows"] if "rows" in entry else {name: entry}
    return found


def _plain_name(detector: str) -> str:
    return detector.split(".")[1].replace("_", "-")


def _known(template: dict[str, Any], models: Sequence[str]) -> Sequence[str]:
    known = [*registry(template), *zoo.few_shot_names(), *zoo.aliases()]
    for model in models:
        if model not in known:
            raise ParamsError(f"no model {model!r}{nearest(model, known)}")
    return models


def plan_of(template: dict[str, Any], model: str, schedule: zoo.Schedule, asked: Overrides) -> Plan:
    """A name of params.yaml is the project's own model, whatever the zoo calls by that name."""
    own = _own_entries(template)
    if model not in own and model in [*zoo.names(), *zoo.few_shot_names(), *zoo.aliases()]:
        entries = zoo.entries(model, schedule)
        encoder, size = _resized(entries.encoder, asked.img_size), asked.img_size or entries.encoder["image_size"]
        own_pixels = entries.encoder["kind"] == zoo.PIXELS
        pixels = zoo.pixels_name(size)
        return Plan(
            _with_overrides(model, entries.model, asked), pixels if own_pixels else entries.encoder_name, encoder,
            pixels, {"kind": zoo.PIXELS, "image_size": size},
        )  # fmt: skip
    entry = own.get(model) or {"detector": next(name for name in detectors.known() if _plain_name(name) == model)}
    encoder = _encoder(template, model, entry)
    pixels = next(name for name, entry in template["encoders"].items() if entry["kind"] == zoo.PIXELS)
    known = template["encoders"]
    return Plan(
        _with_overrides(model, entry, asked),
        encoder,
        _resized(known[encoder], asked.img_size),
        pixels,
        _resized(known[pixels], asked.img_size),
    )


def _resized(encoder: dict[str, Any], image_size: int | None) -> dict[str, Any]:
    """The entry for another size of the image; the parts of a composite keep their share of it."""
    if image_size is None:
        return dict(encoder)
    parts = {
        name: _resized(part, part["image_size"] * image_size // encoder["image_size"]) for name, part in encoder.get("parts", {}).items()
    }
    return encoder | {"image_size": image_size} | ({"parts": parts} if parts else {})


def template_of() -> tuple[dict[str, Any], Path]:
    """params.yaml, checked, and the folder that its paths are relative to."""
    from ruamel.yaml import YAML

    path = next((path for path in (params.PATH, CODE.parent / params.PATH) if path.is_file()), params.PATH)
    params.load(path)
    return YAML(typ="safe").load(path), path.resolve().parent


def _shared(
    template: dict[str, Any],
    root: Path,
    settings: Settings,
    dataset: str,
    entry: dict[str, Any],
    categories: Sequence[str] | None,
    img_size: int | None,
) -> dict[str, Any]:
    """The content of params.yaml but for models and runs."""
    entry = entry | ({"categories": sorted(categories)} if categories else {})
    processes = max(1, min(settings.num_workers, os.cpu_count() or 1))
    backbones = settings.backbone_dir or root / template["backbones"]
    return template | {
        "datasets": {dataset: entry},
        "encoders": {name: _resized(encoder, img_size) for name, encoder in template["encoders"].items()},
        "extracts": {},
        "models": {},
        "runs": {},
        "protocol": template["protocol"] | {"seeds": [settings.seed], "split_seed": settings.seed},
        "compute": template["compute"] | {"processes": processes},
        "backbones": backbones.resolve().as_posix(),
    }


def _dataset(template: dict[str, Any], root: Path, settings: Settings, dataset: str) -> dict[str, Any]:
    """The entry of a data set: a folder or archive of its name in dataset_dir, else what params.yaml has by that name."""
    found = _in_folder(settings.dataset_dir, dataset) if settings.dataset_dir else None
    if found is not None:
        return entry_of(dataset, found)
    if dataset in template["datasets"]:
        entry = template["datasets"][dataset]
        return entry | {"source": (root / entry["source"]).as_posix()}
    here = sorted(path.name for path in settings.dataset_dir.iterdir()) if settings.dataset_dir and settings.dataset_dir.is_dir() else []
    where = f" in {settings.dataset_dir}" if settings.dataset_dir else "; set_globals(dataset_dir=...) says where yours lie"
    raise ParamsError(f"no data set {dataset!r}{where}{nearest(dataset, [*here, *template['datasets']])}")


def entry_of(dataset: str, found: Path) -> dict[str, Any]:
    """The entry of a folder, archive or CSV file: the adapter of the data set's name, else of the layout found. Raises DataError for none."""
    adapter = dataset if dataset in adapters.known() else layout_of(found) if found.is_dir() else "folder"
    return {"adapter": adapter, "source": found.resolve().as_posix()}


def _in_folder(folder: Path, dataset: str) -> Path | None:
    return next((path for suffix in ("", *ARCHIVES, ".csv") if (path := folder / f"{dataset}{suffix}").exists()), None)


def _with_overrides(model: str, entry: dict[str, Any], asked: Overrides) -> dict[str, Any]:
    """The entry with the overrides that its detector has a parameter for; a note is printed of those that it has none for."""
    known = inspect.signature(detectors.load(entry["detector"]).__init__).parameters
    changed = dict(entry)
    for ours, theirs in (("num_epochs", "epochs"), ("batch_size", "batch_size"), ("normalize", "normalize")):
        value = getattr(asked, ours)
        if value is not None and theirs in known:
            changed[theirs] = value
        elif value is not None and ours != "normalize":
            why = "it learns from parts of images" if "epochs" in known else "its fit is one pass over the images"
            print(f"{model}: {ours}={value} changes nothing, {why}")
    if asked.num_epochs is not None and "epochs" in known:
        changed.pop("label", None)  # it is no longer cut short
        changed |= {"steps": None} if "steps" in known else {}
    return changed


def _require_normalize(entry: dict[str, Any], name: str, asked: bool | None) -> None:
    """A frozen network takes the levels that it was trained on, and `pixels` are levels as they are: neither has a choice."""
    normalizes = entry["kind"] != "pixels"
    if asked is False and normalizes and "normalize" not in entry:
        raise ParamsError(
            f"normalize=False: the encoder {name} is a frozen network and needs the mean and std that it was trained with. Leave it out"
        )


def _encoder(template: dict[str, Any], model: str, entry: dict[str, Any]) -> str:
    """The encoder that a run of params.yaml gives the model, else the first that gives what it needs."""
    for run in template["runs"].values():
        used = template["models"][run["model"]]
        if run["model"] == model or model in used.get("rows", {}):
            return run["encoder"]
    options = {key: value for key, value in entry.items() if key not in ("detector", "label")}
    need = detectors.build(entry["detector"], options, at=("models", model)).needs
    for name, encoder in template["encoders"].items():
        backbone = str(encoder.get("backbone", "")).split(".")[0]
        fits = set(need.layers) <= set(encoder.get("layers", ())) and need.backbone in (None, backbone)
        if fits and (need.layers or encoder["kind"] == "pixels"):
            return name
    wanted = f"{', '.join(need.layers)} of {need.backbone or 'any backbone'}"
    raise ParamsError(f"{model} needs {wanted}, which no encoder of params.yaml gives. Add an entry under encoders that has these layers")


def _run(dataset: str, model: str, plan: Plan) -> dict[str, str]:
    code = (CODE / "detectors" / f"{plan.entry['detector'].replace('.', '/')}.py").as_posix()
    return {"dataset": dataset, "model": model, "encoder": plan.encoder, "pixels": plan.pixels, "code": code, "maths": code}


def _write(path: Path, content: dict[str, Any]) -> None:
    import io as streams

    from ruamel.yaml import YAML

    if path.is_file():
        before = YAML(typ="safe").load(path)
        content |= {section: before[section] | content[section] for section in ("encoders", "extracts", "models", "runs")}
    text = streams.StringIO()
    YAML(typ="safe").dump(content, text)
    io.write_text(path, text.getvalue())


def _fingerprint(source: Path) -> list[list[Any]]:
    """Names, sizes and times of all files of a source; empty where there is none."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source] if source.is_file() else []
    kept = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
    return [[path.relative_to(source).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in kept]
