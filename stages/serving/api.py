"""Assay from Python: `train("mvtec", "bottle", "stfpm", num_epochs=50)` runs the verbs of the pipeline and writes the files that they write.

There is no second way to train or to judge: a call makes a small project (see workspace.py) and runs prepare, extract, manifest, train and
evaluate in it, each in a process of its own. With `output_dir` set, models, thresholds, pictures and tables are copied there under the names
that outputs.py lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import params
from stages.detectors.zoo import Schedule
from stages.serving import outputs, workspace
from stages.serving.predict import Verdict
from stages.serving.work import StageFailed, Work
from stages.serving.workspace import Overrides, Settings

Names = str | Sequence[str]
ALL = "all"

_settings = Settings()


class Trained(NamedTuple):
    """One model on one data set."""

    dataset: str
    model: str
    project: Path  # where data/, features/, models/ and metrics/ lie
    outputs: list[Path]  # outputs/<dataset>/<category>/<model>, where output_dir is set
    metrics: dict[str, Any]  # by category, {"image_auroc": {"value", "low", "high"}, ...}
    refused: str | None  # why there is no model, where there is none


def set_globals(
    dataset_dir: str | Path | None = None,
    backbone_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    seed: int = 42,
    num_workers: int = 8,
    pin_memory: bool = True,
    persistent_workers: bool = True,
    show_globals: bool = True,
) -> None:
    """Set what all later calls share; each call of this sets everything anew.

    dataset_dir: holds data sets by name, as folders or archives. backbone_dir: local weights. num_workers: processes, at most one a core.
    pin_memory, persistent_workers: taken so that scripts written for a DataLoader run; features are memory-mapped here, so they change nothing.
    """
    global _settings
    folders = (Path(folder) if folder is not None else None for folder in (dataset_dir, backbone_dir, output_dir))
    _settings = Settings(*folders, seed, num_workers)
    if show_globals:
        shown = _settings._asdict() | {"pin_memory": f"{pin_memory} (no effect)", "persistent_workers": f"{persistent_workers} (no effect)"}
        print("\n".join(f"{name:18} {value}" for name, value in shown.items()))


def train(
    dataset_type: Names,
    category: Names,
    model_type: Names,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    normalize: bool | None = None,
    schedule: Schedule = "full",
    canvas: int | tuple[int, int] | None = None,
    overlap: int | None = None,
) -> list[Trained]:
    """Fit and judge models: one or several data sets, one, several or "all" categories, one or several models of `models()`.

    num_epochs, batch_size: of models that learn in epochs. img_size: pixels of a side. normalize: False only for models that learn from pixels.
    schedule: full (the paper's), quick or cpu, of named configurations; a model of params.yaml is taken as it stands there.
    canvas: for small defects on large images: the side, or height and width, in pixels at which an image is cut into tiles of img_size pixels
    that overlap by `overlap` (an eighth of a tile by default); every model can.
    Raises ParamsError for an unknown name, before anything runs; StageFailed where a verb fails, after the other models have been worked off. A
    model that cannot be had (weights absent) is a result with `refused`.
    """
    asked = Overrides(num_epochs, batch_size, img_size, normalize, canvas, overlap)
    done: list[Trained] = []
    failed: list[str] = []
    for dataset in _listed(dataset_type):
        categories = None if category == ALL else _listed(category)
        work = Work(workspace.make(_settings, dataset, categories, _listed(model_type), asked, schedule))
        try:
            work.prepare()
        except StageFailed as error:
            failed.append(str(error))
            continue
        for run in work.space.runs:
            try:
                done.append(_fit(work, run))
            except StageFailed as error:
                failed.append(str(error))
    if failed:
        error = StageFailed("\n".join(failed))
        error.trained = done
        raise error
    return done


def train_models(
    dataset_type: Names,
    categories: Names = ALL,
    models: Names = ALL,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    normalize: bool | None = None,
    schedule: Schedule = "full",
    canvas: int | tuple[int, int] | None = None,
    overlap: int | None = None,
) -> list[Trained]:
    """`train` for several models, or "all" of `models()`."""
    wanted = workspace.registry() if models == ALL else models
    return train(dataset_type, categories, wanted, num_epochs, batch_size, img_size, normalize, schedule, canvas, overlap)


def models() -> list[str]:
    """The names of all models: those of params.yaml, then the named configurations (`assay models list`)."""
    return workspace.registry()


def predict(
    images: str | Path | Sequence[str | Path],
    dataset_type: str | None = None,
    category: str | None = None,
    model_type: str | None = None,
    out: str | Path | None = None,
) -> list[Verdict]:
    """Verdicts on image files or folders, by a model that `train` made or, where none fits, by one of the project in the current folder.

    out: folder for pictures. Raises UserError where it is not clear which model is meant.
    """
    from stages.serving import predict as serve
    from stages.serving import reference

    paths = [Path(images)] if isinstance(images, str | Path) else [Path(image) for image in images]
    project = _project_of(dataset_type, category, model_type)
    settings = params.load(project / params.PATH)
    chosen = reference.choose(settings, project, dataset_type, category, model_type)
    return list(serve.predict(settings, chosen, serve.find_images(paths), Path(out) if out is not None else None))


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _fit(work: Work, run: str) -> Trained:
    result, space = work.fit(run), work.space
    written = []
    if _settings.output_dir is not None and "refused" not in result:
        written = outputs.write_trees(space.folder, run, _settings.output_dir)
    return Trained(space.dataset, space.runs[run], space.folder, written, result.get("categories", {}), result.get("refused"))


def _project_of(dataset: str | None, category: str | None, model: str | None) -> Path:
    """The latest workspace that holds results of what is asked for, else the current folder."""
    spaces = sorted(workspace.home(_settings).glob(f"*/{params.PATH}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in spaces:
        settings = params.load(path)
        for run in settings.runs.values():
            wanted = settings.datasets[run.dataset].categories
            fits = dataset in (None, run.dataset) and model in (None, run.model) and (category is None or not wanted or category in wanted)
            if fits and (path.parent / "metrics" / run.dataset / f"{run.model}.json").is_file():
                return path.parent
    return Path()
