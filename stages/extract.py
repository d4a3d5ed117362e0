"""Run one frozen encoder over one data set and store what it gives.

Reads the sample table (the encoder `pixels`) or `features/<dataset>/<pixels>` (any other), writes features/<dataset>/<encoder>/. Says first
how much it will write; above features.budget_gb nothing is stored and the encoder streams. Weights that are absent are a recorded refusal,
not a failure.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import io
from stages.datasets.tiles import Grid
from stages.errors import UserError, guarded
from stages.params import EncoderEntry, Extract, Params, ParamsError, load

if TYPE_CHECKING:
    from stages.encoders.batches import Source

PIXELS = "pixels"


def main(dataset: str, encoder: str) -> int:
    import torch

    from stages.encoders.encoder import Encoder
    from stages.encoders.extraction import describe_refused, describe_streamed, fill, stored_shapes
    from stages.encoders.shards import row_bytes
    from stages.encoders.weights import WeightsMissing

    params = load()
    job, entry = _job(params, dataset, encoder), params.entry("encoders", encoder)
    out = Path("features", dataset, encoder)
    shutil.rmtree(out, ignore_errors=True)  # a shard of an earlier run must not stay beside the new ones
    torch.set_num_threads(params.compute.threads)
    form = "uint8" if entry.kind == PIXELS else params.features.form
    try:
        built = Encoder.from_entry(encoder, entry, params.compute.device, params.compute.threads, params.backbones_folder, form)
    except WeightsMissing as reason:
        print(f"{dataset}/{encoder}: not extracted. {reason}")
        described = {"name": encoder, **entry.model_dump()}
        describe_refused(out, {"entry": described, "dataset": dataset, "reads": job.reads, "refused": str(reason)})
        return 0
    source = _source(job, entry, Grid.of(built.identity))
    shapes, images = stored_shapes(built, source), sum(map(len, source.categories().values()))
    layers = {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in shapes.items()}
    about: dict[str, Any] = {**built.identity, "dataset": dataset, "reads": job.reads, "images": images, "layers": layers}
    if source.grid:
        about["tiles"] = source.grid._asdict()
    if _fits(job, form, row_bytes(shapes), images, params.features.budget_gb):
        fill(out, built, source, about, params.features.batch_size, params.features.shard_mb, params.compute.processes)
    else:
        describe_streamed(out, source, {**about, "form": "streamed"})
    return 0


def _job(params: Params, dataset: str, encoder: str) -> Extract:
    jobs = [job for job in params.extracts.values() if (job.dataset, job.encoder) == (dataset, encoder)]
    if len(jobs) != 1:
        known = ", ".join(f"{job.dataset} {job.encoder}" for job in params.extracts.values())
        raise ParamsError(f"params.yaml: extracts must have one entry for {dataset} {encoder}, has {len(jobs)}. Known: {known}")
    return jobs[0]


def _source(job: Extract, entry: EncoderEntry, grid: Grid | None) -> Source:
    """Where the pixels come from: the image files, cut by `grid` where there is one, or the pixels store that the entry reads."""
    from stages.encoders.batches import pixels_source
    from stages.encoders.pixels import Decoded

    if entry.kind == PIXELS:
        return Decoded(Path(job.reads), entry.image_size, grid)
    size = io.read_json(Path(job.reads, "encoder.json"))["entry"]["image_size"]
    if size != entry.image_size:
        raise ParamsError(
            f"encoders.{job.encoder}.image_size is {entry.image_size}, but {job.reads} holds images of {size} px. "
            f"Make the two equal, or let the extract read a pixels entry of {entry.image_size} px"
        )
    return pixels_source(Path(job.reads), Path())


def _fits(job: Extract, form: str, row_bytes: int, images: int, budget_gb: float) -> bool:
    """Whether the features are to be stored; prints the estimate. Raises UserError for no samples, or for no room on the disk."""
    if images == 0:
        raise UserError(f"{job.reads} lists no samples, so there is nothing to encode. Run `dvc repro prepare`")
    needed = row_bytes * images
    estimate = f"{job.dataset}/{job.encoder}: {images} images x {row_bytes / 1e6:.2f} MB = {needed / 1e9:.2f} GB as {form}"
    if form == "streamed" or needed > budget_gb * 1e9:
        why = "asked for" if form == "streamed" else f"above features.budget_gb = {budget_gb:g}"
        print(f"{estimate}; {why}: nothing is stored, the encoder runs whenever its features are read")
        return False
    free = shutil.disk_usage(Path()).free
    if needed > free:
        raise UserError(f"{estimate}, but the disk has {free / 1e9:.2f} GB left. Free some, or set features.form to float16 or streamed")
    print(estimate)
    return True


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
