"""Which fitted model answers, and what held-out good parts say of it: their scores, the colour scale of its maps, how they look.

Held-out good parts are those that the model never learnt from. The scale is made from them at the first prediction, through the same pipeline, and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import errors, io
from stages.datasets.images import read_image
from stages.datasets.samples import manifest_samples, root_of
from stages.detectors import artefact
from stages.params import Params, ParamsError, nearest
from stages.serving.leaderboard import results
from stages.serving.verdict import VERDICTS

if TYPE_CHECKING:
    import numpy as np

    from stages.metrics.thresholds import Threshold
    from stages.plots.overlay import Scale
    from stages.serving.pipeline import Pipeline

SCALES = Path(".assay/scales")  # of the project
AT_ONCE = 8  # images in memory
BRIGHTNESS_ALLOWANCE = 20  # levels of 255 outside the range of the held-out good images
SHAPE_ALLOWANCE = 0.1  # relative change of width / height


class Model(NamedTuple):
    """One fitted model and where its results lie."""

    project: Path
    dataset: str
    category: str
    name: str
    place: Path  # models/<dataset>/<model>/<category>/seed<k>
    results: Path  # metrics/<dataset>/<model>


class Reference(NamedTuple):
    """What held-out good parts say of one model."""

    scores: np.ndarray  # (n,)
    threshold: Threshold
    scale: Scale | None  # None where the model has no maps, or no held-out image can be read
    brightness: tuple[float, float] | None  # lowest and highest mean level, 0..255
    shapes: tuple[float, ...]  # width / height of the training images


def choose(params: Params, project: Path = Path(), dataset: str | None = None, category: str | None = None, model: str | None = None) -> Model:
    """The model asked for; by default the one that the report recommends, without a report the one with the highest mean image AUROC.

    Of data sets and categories the only one. Raises UserError where it is not clear what is meant, or nothing has been fitted.
    """
    by_dataset: dict[str, dict[str, dict[str, Any]]] = {}
    unseen = {name for task in (params.series, params.records) if task for name in task.datasets}
    for folder, result in results(params, project).items():
        if "members" in result or result["dataset"] in unseen:
            continue  # an ensemble is a row of figures, not a fitted model; a detector of signals or records sees no image
        by_dataset.setdefault(result["dataset"], {})[result["model"]] = result | {"folder": folder}
    if not by_dataset:
        raise errors.Missing(f"no results in {(project / 'metrics').as_posix()}/ yet. Run `dvc repro`")
    dataset = only("data set", dataset, by_dataset, "--dataset")
    result = _result(by_dataset[dataset], dataset, model or _recommended(project, dataset, by_dataset[dataset]))
    category = only("category", category, io.read_json(result["folder"] / "thresholds.json"), "--category")
    run = next(run for run in params.runs.values() if run.dataset == dataset and result["model"] in params.rows(run.model))
    place = artefact.fitted(project / artefact.folder(dataset, run.model, result["model"], category, params.seeds(run)[0]))
    return Model(project, dataset, category, result["model"], place, result["folder"])


def only(what: str, asked: str | None, known: Any, option: str) -> str:
    """What was asked for, by default the only one there is. Raises ParamsError with what there is."""
    if asked is None and len(known) == 1:
        return next(iter(known))
    if asked is None:
        raise ParamsError(f"which {what}? There are {', '.join(known)}. Say {option} {next(iter(known))}")
    if asked not in known:
        raise ParamsError(f"no {what} {asked!r} with results here{nearest(asked, known)}")
    return asked


def _recommended(project: Path, dataset: str, by_model: dict[str, dict[str, Any]]) -> str | None:
    verdicts = project / VERDICTS
    model = io.read_json(verdicts).get(dataset) if verdicts.is_file() else None
    return model if model in by_model else None


def _result(by_model: dict[str, dict[str, Any]], dataset: str, model: str | None) -> dict[str, Any]:
    def auroc(result: dict[str, Any]) -> float:
        return -1.0 if {"refused", "transductive"} & result.keys() else result["mean"]["image_auroc"]["value"] or 0.0

    if model is not None and model not in by_model:
        raise ParamsError(f"no model {model!r} with results on {dataset}{nearest(model, by_model)}")
    result = by_model[model] if model is not None else max(by_model.values(), key=auroc)
    if "refused" in result:
        raise errors.UserError(f"{result['model']} has no fitted model on {dataset}: {result['refused']}")
    if "transductive" in result:
        others = [name for name, other in by_model.items() if auroc(other) >= 0]
        instead = f"Name another with --model: {', '.join(others)}" if others else "Fit another model"
        raise ParamsError(f"{result['model']} is transductive: it scores a set of images and cannot judge a single one. {instead}")
    return result


def refer(params: Params, model: Model, pipeline: Pipeline, threshold: Threshold) -> Reference:
    """Held-out good scores as evaluate used them; the colour scale from held-out good images, kept for the next time."""
    from stages.plots.overlay import Scale

    shown = _remembered(model, lambda: _look_at_held_out(params, model, pipeline))
    return Reference(
        _held_out_scores(model),
        threshold,
        Scale(**shown["scale"]) if shown["scale"] else None,
        tuple(shown["brightness"]) if shown["brightness"] else None,
        tuple(shown["shapes"]),
    )


def threshold_of(model: Model, value: float | None = None, false_alarm_rate: float | None = None) -> Threshold:
    """The default one that evaluate fitted; or the value given; or what promises another rate from the same held-out good parts."""
    from stages.metrics.inputs import Undefined
    from stages.metrics.thresholds import Threshold, conformal

    if value is not None and false_alarm_rate is not None:
        raise ParamsError("a threshold and a false-alarm rate were given: give one of the two")
    if value is not None:
        return Threshold("given", value)
    if false_alarm_rate is not None:
        try:
            return conformal(_held_out_scores(model), false_alarm_rate)
        except (Undefined, ValueError) as error:
            raise ParamsError(f"no threshold for a false-alarm rate of {false_alarm_rate:g}: {error}") from error
    stored = io.read_json(model.results / "thresholds.json")[model.category]
    return Threshold.from_dict(stored["thresholds"][stored["default"]])


def _held_out_scores(model: Model) -> np.ndarray:
    import numpy as np

    from stages.metrics.judgement import exchangeable

    rows = [row for row in io.read_table(model.results / "predictions.parquet") if row["category"] == model.category and row["label"] == 0]
    seed = int(model.place.name.removeprefix("seed"))
    of = {split: np.array([row["image_score"] for row in rows if (row["split"], row["seed"]) == (split, seed)]) for split in ("train", "val")}
    return np.sort(exchangeable(of["train"], of["val"])[0])


def _remembered(model: Model, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `look` finds, from the file that it left last time if model and data are still the same."""
    manifest = model.project / "data" / model.dataset / "manifest.json"
    key = io.content_hash([io.file_hash(model.place / "model.safetensors"), io.read_json(model.place / "config.json"), io.file_hash(io.require(manifest))])
    path = model.project / SCALES / f"{key[:16]}.json"
    if not path.is_file():
        io.write_json(path, look())
    return io.read_json(path)


def _look_at_held_out(params: Params, model: Model, pipeline: Pipeline) -> dict[str, Any]:
    import numpy as np

    from stages.plots.overlay import scale_of

    folder = model.project / "data" / model.dataset
    rows = {row["sample_id"]: row for row in io.read_table(folder / "samples.parquet")}
    own = [sample for sample in manifest_samples(model.dataset, model.project) if sample["category"] == model.category and sample["label"] == 0]
    paths = [root_of(folder / "dataset.json") / rows[sample["sample_id"]]["image_path"] for sample in own if sample["split"] == "val"]
    levels, maps = [], []
    for start in range(0, len(paths), AT_ONCE):
        decoded = [read_image(path) for path in paths[start : start + AT_ONCE]]
        levels += [float(image.mean()) for image in decoded]
        maps.append(_at_most(score(pipeline, decoded)[1], params.protocol.map_size))
    scale = scale_of(np.concatenate(maps), params.protocol.target_false_alarm_rate) if maps and maps[0] is not None else None
    learnt = [rows[sample["sample_id"]] for sample in own if sample["split"] in ("train", "val")]
    return {
        "scale": scale._asdict() if scale else None,
        "brightness": [min(levels), max(levels)] if levels else None,
        "shapes": sorted({row["width"] / row["height"] for row in learnt}),
    }


def _at_most(maps: np.ndarray | None, side: int) -> np.ndarray | None:
    """Maps (B, H, W) of large canvases by the peaks in each of side x side fields, so that those of all held-out images fit into memory."""
    import torch

    if maps is None or max(maps.shape[1:]) <= side:
        return maps
    return torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(maps)[:, None], side)[:, 0].numpy()


def score(pipeline: Pipeline, decoded: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (B,) and maps (B, S, S) or None."""
    found = pipeline(decoded)
    return found.image_score.cpu().numpy(), None if found.anomaly_map is None else found.anomaly_map.cpu().numpy()


def unlike_training(reference: Reference, image: np.ndarray) -> list[str]:
    """How an image differs from those the model has learnt from, where that alone may decide its score."""
    height, width = image.shape[:2]
    found, level, shape = [], float(image.mean()), width / height
    if reference.shapes and all(abs(shape / known - 1) > SHAPE_ALLOWANCE for known in reference.shapes):
        known = f"{reference.shapes[0]:.2f}..{reference.shapes[-1]:.2f}" if len(reference.shapes) > 1 else f"{reference.shapes[0]:.2f}"
        found.append(f"its width / height is {shape:.2f}, the training images have {known}: it is squeezed to fit, crop or photograph it alike")
    if reference.brightness:
        low, high = reference.brightness
        if not low - BRIGHTNESS_ALLOWANCE <= level <= high + BRIGHTNESS_ALLOWANCE:
            found.append(f"its mean level is {level:.0f} of 255, held-out good images have {low:.0f}..{high:.0f}: check light and exposure")
    return found
