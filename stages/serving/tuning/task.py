"""What a search is judged by: the held-out (val) images of a run, and where none of them is bad, copies of them with planted defects.

The copies are encoded once, into a feature store of their own below `.assay/tune/planted/`, which every trial and every model of the same encoder
then reads as any other. No row of a test split is ever asked for: `task_of` takes train and val from the manifest, and nothing else here reads
images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import io
from stages.datasets.samples import manifest_samples
from stages.errors import UserError
from stages.params import Params, ParamsError, RunEntry, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from stages.encoders.batches import StoredBatches
    from stages.types import Features

HOME = Path(".assay/tune")
PIXELS, FEATURES = "pixels", "features"
REAL_AT_LEAST = 2  # bad val images of each category, below which nothing can be said of their spread
Row = dict[str, Any]


class Task(NamedTuple):
    """One run's data as the search sees it. planted: the folder of the copies' stores, None where val has bad images of its own."""

    run: RunEntry
    categories: list[str]
    train: list[Row]
    val: list[Row]
    copies: list[Row]
    planted: Path | None

    @property
    def objective(self) -> str:
        return "AUROC against planted defects, not real ones" if self.planted else "AUROC of the held-out (val) images"

    def judged(self, category: str) -> list[Row]:
        """What a trial scores of one category, in this order."""
        return [row for row in self.val + self.copies if row["category"] == category]


def task_of(params: Params, name: str, categories: list[str], seed: int) -> Task:
    """The task of a run; plants and encodes what is not there yet. categories: all where none is named.

    Raises ParamsError for an unknown category, UserError where one has no good image to hold out, Refusal where there are no features.
    """
    run = params.runs[name]
    rows = [row for row in manifest_samples(run.dataset) if row["split"] in ("train", "val") and row["label"] is not None]
    known = sorted({row["category"] for row in rows})
    for category in categories:
        if category not in known:
            raise ParamsError(f"{run.dataset} has no category {category!r}{nearest(category, known)}")
    chosen = [category for category in known if not categories or category in categories]
    train, val = ([row for row in rows if row["split"] == split and row["category"] in chosen] for split in ("train", "val"))
    for category in chosen:
        if not any(row["category"] == category and row["label"] == 0 for row in val):
            raise UserError(f"{run.dataset}: category {category!r} holds out no good image (split val), so there is nothing to tune on")
    if all(_bad(val, category) >= REAL_AT_LEAST for category in chosen):
        return Task(run, chosen, train, val, [], None)
    if "tiles" in _about(run):
        raise UserError(
            f"the images of {run.dataset} are cut into tiles, where no defects can be planted. At least {REAL_AT_LEAST} bad images of each category "
            "must be held out (split val of data/<dataset>/manifest.json) to tune on"
        )
    good = [row for row in val if row["label"] == 0]
    folder, copies = _planted(params, run, good, seed)
    return Task(run, chosen, train, good, copies, folder)


def copies_of(params: Params, task: Task, category: str, layers: tuple[str, ...]) -> StoredBatches | None:
    """The copies of one category as batches, read as `open_batches` reads the originals; None where there are none."""
    from stages.encoders import batches
    from stages.encoders.shards import Store

    if task.planted is None:
        return None
    about = _about(task.run)
    pixels, wanted = Store(task.planted / PIXELS), [layer for layer in layers if layer != PIXELS]
    place = (params.compute.device, params.compute.threads, params.backbones_folder)
    stored = about["entry"]["kind"] != PIXELS and about["form"] != "streamed"
    features = Store(task.planted / FEATURES) if stored else batches.Streamed(about, pixels, *place)
    rows = [row for row in task.copies if row["category"] == category]
    return batches.StoredBatches(rows, pixels, features, wanted, params.features.batch_size, about)


class Plants:
    """The copies as a source of pixels and masks (stages.encoders.batches.Source). A copy depends on its seed, category and number alone."""

    has_masks = True

    def __init__(self, good: dict[str, Tensor], copies: list[Row], seed: int) -> None:
        """good: per category, (N, 3, H, W) uint8."""
        self._good, self._copies, self._seed = good, {row["sample_id"]: row for row in copies}, seed

    def categories(self) -> dict[str, list[str]]:
        return {category: [key for key, row in self._copies.items() if row["category"] == category] for category in self._good}

    def read(self, sample_ids: list[str], names: list[str]) -> Features:
        import torch

        from stages.seed import torch_generator
        from stages.serving.tuning import planting

        pairs = []
        for row in (self._copies[sample_id] for sample_id in sample_ids):
            images, number = self._good[row["category"]], row["number"]
            generator = torch_generator(self._seed, "planted", row["category"], number)
            pairs.append(planting.plant(images, planting.plan(len(images))[number], generator))
        images, masks = zip(*pairs, strict=True)
        return {"pixels": torch.stack(images), "mask": torch.stack(masks)}


def _bad(rows: list[Row], category: str) -> int:
    return len({row["group"] for row in rows if row["category"] == category and row["label"] == 1})


def _about(run: RunEntry) -> dict[str, Any]:
    """The identity of the run's encoder. Raises Refusal with the recorded reason where it could not run."""
    from stages.types import Refusal

    about = io.read_json(Path("features", run.dataset, run.encoder, "encoder.json"))
    if "refused" in about:
        raise Refusal(about["refused"])
    return about


def _planted(params: Params, run: RunEntry, good: list[Row], seed: int) -> tuple[Path, list[Row]]:
    """The folder of the copies' stores, filled where it is not yet, and their rows. A copy belongs to the group of its image."""
    from stages.serving.tuning import planting

    by_category: dict[str, list[Row]] = {}
    for row in good:
        by_category.setdefault(row["category"], []).append(row)
    copies = []
    for rows in by_category.values():
        for number, planned in enumerate(planting.plan(len(rows))):
            source, name = rows[planned.image], f"planted-{number:03d}-{planned.kind}"
            changes = {"sample_id": f"{source['sample_id']}/{name}", "label": 1, "mask": True, "number": number}
            copies.append({**source, **changes})
    code = [io.file_hash(path) for path in (Path(planting.__file__), Path(__file__))]
    folder = HOME / "planted" / io.content_hash([_about(run), copies, seed, code])[:16]
    _fill(folder, params, run, by_category, copies, seed)
    return folder, copies


def _fill(folder: Path, params: Params, run: RunEntry, good: dict[str, list[Row]], copies: list[Row], seed: int) -> None:
    """Pixels and masks, then features; each store is complete when its `encoder.json` stands in it."""
    from stages.encoders.batches import open_batches
    from stages.encoders.encoder import Encoder
    from stages.encoders.extraction import fill, stored_shapes
    from stages.encoders.shards import ABOUT, Store
    from stages.engine import thread_limit

    about = _about(run)
    base = about if about["entry"]["kind"] == PIXELS else io.read_json(Path(about["reads"], ABOUT))
    place = (params.compute.device, params.compute.threads, params.backbones_folder)
    sizes = (params.features.batch_size, params.features.shard_mb, params.compute.processes)

    def write(name: str, recorded: dict[str, Any], source: Any) -> None:
        encoder = Encoder.from_identity(recorded, *place)
        shapes = stored_shapes(encoder, source)
        layers = {layer: {"shape": list(shape), "dtype": dtype} for layer, (shape, dtype) in shapes.items()}
        fill(folder / name, encoder, source, {**recorded, "layers": layers, "dataset": f"planted defects, {run.dataset}"}, *sizes)

    with thread_limit(params.compute.threads):
        if not (folder / PIXELS / ABOUT).is_file():
            clean = {category: open_batches(run.dataset, run.encoder, rows, (), params) for category, rows in good.items()}
            images = {category: batches.take(list(range(batches.samples))).features["pixels"] for category, batches in clean.items()}
            write(PIXELS, {**base, "form": "uint8"}, Plants(images, copies, seed))
        if about["entry"]["kind"] != PIXELS and about["form"] != "streamed" and not (folder / FEATURES / ABOUT).is_file():
            write(FEATURES, about, Store(folder / PIXELS))
