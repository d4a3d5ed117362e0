"""New images in, verdicts out: the raw score, where it lies among good parts, the verdict at the stored threshold, and a picture.

The pipeline is the one that bench times, the thresholds are those that evaluate wrote. Held-out good parts, which the model never learnt from,
say how unusual a score is and anchor the colours of every picture; the picture of one image never depends on that image's own maximum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages import engine, errors, io
from stages.datasets.images import UnreadableImage, is_image_name, read_image
from stages.params import Params
from stages.serving.reference import AT_ONCE, Model, Reference, refer, score, threshold_of, unlike_training

if TYPE_CHECKING:
    import numpy as np

    from stages.metrics.thresholds import Threshold
    from stages.plots.overlay import Scale
    from stages.serving.pipeline import Pipeline

UNREADABLE = "unreadable"
LONGEST_SIDE = 1024  # of a picture


class Verdict(NamedTuple):
    image: str
    dataset: str
    category: str
    model: str
    image_score: float | None  # raw; None where the file is unreadable
    percentile: float | None  # share of held-out good parts that score no higher, in percent
    good_parts: int  # how many that is of
    threshold: float | None
    verdict: str  # "good", "anomalous", "unknown" where there is no threshold, or UNREADABLE
    margin: float | None  # score - threshold; above 0 is anomalous
    relative_margin: float | None  # in units of the distance from the median good part to the threshold
    overlay: str | None
    warnings: list[str]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files as given, and all below the folders given, in order. Raises Missing, or UserError where a folder holds none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_image_name(file))
            if not inside:
                raise errors.UserError(f"{path} holds no image. Name image files, or a folder with some in it")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise errors.Missing(f"{path} is not here. Name image files, or folders with images")
    return found


def predict(
    params: Params, model: Model, images: Sequence[Path], out: Path | None = None, threshold: Threshold | None = None
) -> Iterator[Verdict]:
    """A verdict for each image, in order; pictures go to `out` where it is given. A file that cannot be read has a verdict of its own.

    threshold: the one that evaluate fitted by default.
    """
    from stages.serving.pipeline import Pipeline

    with engine.thread_limit(params.compute.threads):
        backbones = model.project / params.backbones_folder
        pipeline = Pipeline.load(model.place, params.compute.device, params.compute.threads, backbones)
        reference = refer(params, model, pipeline, threshold or threshold_of(model))
        names = iter(_picture_names(images))
        for start in range(0, len(images), AT_ONCE):
            for verdict, picture in _judged(pipeline, reference, model, images[start : start + AT_ONCE]):
                name = next(names)
                if out is not None and picture is not None:
                    io.write_bytes(out / name, picture)
                    verdict = verdict._replace(overlay=(out / name).as_posix())
                yield verdict


def _judged(pipeline: Pipeline, reference: Reference, model: Model, paths: Sequence[Path]) -> Iterator[tuple[Verdict, bytes | None]]:
    """Each image of one batch with its picture, as PNG."""
    decoded = {path: _decoded(path) for path in paths}
    readable = [image for image in decoded.values() if not isinstance(image, UnreadableImage)]
    scores, maps = score(pipeline, readable) if readable else ((), None)
    place = {path: number for number, path in enumerate(path for path in decoded if not isinstance(decoded[path], UnreadableImage))}
    for path in paths:
        image = decoded[path]
        if isinstance(image, UnreadableImage):
            yield _unreadable(model, path, image), None
            continue
        verdict = judge(model, reference, path, float(scores[place[path]]), image)
        shown = maps is not None and reference.scale is not None
        yield verdict, draw(image, maps[place[path]], reference.scale, _caption(verdict)) if shown else None


def _decoded(path: Path) -> np.ndarray | UnreadableImage:
    try:
        return read_image(path)
    except UnreadableImage as error:
        return error


def _unreadable(model: Model, path: Path, error: UnreadableImage) -> Verdict:
    nothing = dict.fromkeys(Verdict._fields)
    about = {"image": path.as_posix(), "dataset": model.dataset, "category": model.category, "model": model.name}
    return Verdict(**nothing | about | {"good_parts": 0, "verdict": UNREADABLE, "warnings": [str(error)]})


def judge(model: Model, reference: Reference, path: Path, image_score: float, image: np.ndarray) -> Verdict:
    """What the numbers say; `score > threshold` is anomalous, as everywhere."""
    import numpy as np

    threshold, scores = reference.threshold.value, reference.scores
    share = 100 * float(np.mean(scores <= image_score)) if len(scores) else None
    margin = None if threshold is None else image_score - threshold
    span = None if threshold is None or not len(scores) else threshold - float(np.median(scores))
    return Verdict(
        image=path.as_posix(),
        dataset=model.dataset,
        category=model.category,
        model=model.name,
        image_score=image_score,
        percentile=share,
        good_parts=len(scores),
        threshold=threshold,
        verdict="unknown" if margin is None else "anomalous" if margin > 0 else "good",
        margin=margin,
        relative_margin=margin / span if margin is not None and span else None,
        overlay=None,
        warnings=unlike_training(reference, image),
    )


def draw(image: np.ndarray, anomaly_map: np.ndarray, scale: Scale, caption: str) -> bytes:
    """PNG of the image beside the image with its map, at most LONGEST_SIDE high or wide each."""
    import io as streams

    import numpy as np
    from PIL import Image

    from stages.plots.overlay import overlay

    factor = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
    size = tuple(max(1, round(side * factor)) for side in image.shape[1::-1])
    shown = np.asarray(Image.fromarray(image).resize(size))
    heat = np.asarray(Image.fromarray(anomaly_map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    png = streams.BytesIO()
    overlay(shown, heat, scale, None, caption).save(png, format="png")
    return png.getvalue()


def _caption(verdict: Verdict) -> str:
    limit = f", threshold {verdict.threshold:.4g}" if verdict.threshold is not None else ""
    return f"{verdict.verdict}: score {verdict.image_score:.4g}{limit}"


def _picture_names(images: Sequence[Path]) -> list[str]:
    """One name for each image: its own, with the first free number where another has it already."""
    names: dict[str, None] = {}
    for path in images:
        free = (f"{path.stem}{end}.png" for end in ("", *(f"-{number}" for number in range(2, len(images) + 2))))
        names[next(name for name in free if name not in names)] = None
    return list(names)


def head(model: Model, threshold: Threshold) -> str:
    """Which model speaks, and what its threshold promises."""
    from stages.metrics.thresholds_text import promise_text

    if threshold.value is None:
        return f"{model.name} on {model.dataset} / {model.category}; no threshold: {threshold.reason}"
    promise = f", {promise_text(threshold)}" if threshold.method == "conformal" else ""
    note = f"\nnote: {threshold.note}" if threshold.note else ""
    return f"{model.name} on {model.dataset} / {model.category}; threshold {threshold.value:.4g} ({threshold.method}){promise}{note}"


def render(verdict: Verdict) -> str:
    """A few lines for a terminal."""
    if verdict.image_score is None:
        return f"{verdict.image}: {verdict.verdict}. {verdict.warnings[0]}"
    among = "no held-out good parts to compare with"
    if verdict.percentile is not None:
        among = f"as high as or higher than {verdict.percentile:.0f} % of {verdict.good_parts} held-out good parts"
    lines = [f"{verdict.image}: {verdict.verdict}", f"  score {verdict.image_score:.4g}, {among}"]
    if verdict.margin is not None:
        lines.append(f"  threshold {verdict.threshold:.4g}, margin {verdict.margin:+.4g}")
    if verdict.relative_margin is not None:
        lines[-1] += f" ({verdict.relative_margin:+.2f} times the way from a typical good part to the threshold)"
    lines += [f"  warning: {text}" for text in verdict.warnings]
    return "\n".join([*lines, *([f"  picture: {verdict.overlay}"] if verdict.overlay else [])])
