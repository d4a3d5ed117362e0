"""Run one frozen encoder over one modality of a data set of records and store its tokens.

Reads data/<dataset>/samples.parquet and the raw media it names, writes features/<dataset>/<modality>/. Files that cannot be read are left out, counted
and listed in records.json; more than 5 % of them are an error. Weights that are absent are a recorded refusal, and models then do without the modality.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from stages import io
from stages.datasets.samples import DataError, root_of
from stages.encoders import media
from stages.errors import OK, guarded
from stages.params import ParamsError, RecordExtract, RecordTask, load, nearest
from stages.progress import progress


def main(dataset: str, modality: str) -> int:
    params = load()
    job = _job(params.record_task, dataset, modality)
    entry = params.record_task.entry("encoders", job.encoder)
    out, at = Path("features", dataset, modality), ("records", "encoders", job.encoder)
    shutil.rmtree(out, ignore_errors=True)  # a shard of an earlier run must not stay beside the new ones
    rows, root = io.read_table(Path("data", dataset, "samples.parquet")), root_of(Path("data", dataset, "dataset.json"))
    if entry.kind == media.STORED:
        from stages.encoders.media.stored import pack

        return pack(out, dataset, rows, root, entry.options, at)
    import torch

    from stages.encoders.encoder import resolve_device
    from stages.encoders.media.encoder import Place
    from stages.encoders.media.extraction import fill
    from stages.encoders.weights import WeightsMissing

    files = _files(rows, root, modality)
    torch.set_num_threads(params.compute.threads)
    place = Place(resolve_device(params.compute.device), params.compute.threads, params.backbones_folder)
    about: dict[str, Any] = {"dataset": dataset, "modality": modality}
    try:
        encoder = media.build(job.encoder, entry.kind, entry.options, place, at)
    except WeightsMissing as reason:
        print(f"{dataset}/{modality}: not extracted. {reason}")
        described = {"name": job.encoder, "kind": entry.kind, **entry.options}
        io.write_json(out / "records.json", {"entry": described, **about, "refused": str(reason), "modalities": {}, "records": 0})
        return OK
    with progress(f"{dataset}/{modality}", len(files)) as advance:
        bad = fill(out, modality, encoder, files, {**encoder.identity, **about, "reads": encoder.reads}, params.compute.processes, advance)
    print(
        f"{dataset}/{modality}: {len(files) - bad} of {len(files)} files encoded by {job.encoder}"
        + (f"; {bad} could not be read" if bad else "")
    )
    return OK


def _job(task: RecordTask, dataset: str, modality: str) -> RecordExtract:
    jobs = [job for job in task.extracts.values() if (job.dataset, job.modality) == (dataset, modality)]
    if len(jobs) != 1:
        known = ", ".join(f"{job.dataset} {job.modality}" for job in task.extracts.values())
        raise ParamsError(f"params.yaml: records.extracts must have one entry for {dataset} {modality}, has {len(jobs)}. Known: {known}")
    return jobs[0]


def _files(rows: list[dict[str, Any]], root: Path, modality: str) -> list[Any]:
    """The files of a modality, of the records that have it."""
    from stages.datasets.records import Record
    from stages.encoders.media.extraction import File

    column = f"{modality}_path"
    if rows and column not in rows[0]:
        known = [name.removesuffix("_path") for name in rows[0] if name.endswith("_path")]
        raise ParamsError(f"the records have no modality {modality!r}{nearest(modality, known)}")
    found = []
    for row in rows:
        if row[column]:
            record = Record(row["record_id"], {}, row["label"], row["group"], row["fault"], row["split"])
            found.append(File(root / row[column], row[column], record))
    if not found:
        raise DataError(f"E436 no record has a file of {modality}. Take its entry out of records.extracts, or look at the source")
    return found


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
