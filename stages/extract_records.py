"""Run a frozen encoder over each modality of a data set of records, or over those that are named, and store the tokens.

Reads data/<dataset>/samples.parquet and the raw media it names, writes features/<dataset>/<modality>/. Files that cannot be read are left out, counted
and listed in records.json; more than 5 % of them are an error. Weights that are absent are a recorded refusal, and models then do without the modality.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from stages import engine, io
from stages.datasets.samples import root_of
from stages.encoders import media
from stages.errors import OK, guarded
from stages.params import Params, ParamsError, RecordExtract, RecordTask, load, options
from stages.progress import progress


def main(dataset: str, *modalities: str) -> int:
    params = load()
    params.record_task.entry("datasets", dataset)
    wanted = modalities or [job.modality for job in params.record_task.extracts.values() if job.dataset == dataset]
    if not wanted:
        raise ParamsError(f"params.yaml: records.extracts has no entry for {dataset}. Say which encoder sees which of its modalities")
    if len(wanted) == 1:
        return extract(params, dataset, wanted[0])
    units = [engine.Unit(name, {"params": params, "dataset": dataset, "modality": name}) for name in wanted]
    outcomes = engine.run(extract, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch",))
    return engine.exit_code(dataset, outcomes)


def extract(params: Params, dataset: str, modality: str) -> int:
    """One modality, into its own folder."""
    job = _job(params.record_task, dataset, modality)
    entry = params.record_task.entry("encoders", job.encoder)
    out, at = Path("features", dataset, modality), ("records", "encoders", job.encoder)
    shutil.rmtree(out, ignore_errors=True)  # a shard of an earlier run must not stay beside the new ones
    rows, root = io.read_table(Path("data", dataset, "samples.parquet")), root_of(Path("data", dataset, "dataset.json"))
    control = {"control": True} if job.control else {}
    if entry.kind == media.FACTS:
        from stages.encoders.media import facts

        given = options(facts.pack, entry.options, at)
        described = {"entry": {"name": job.encoder, "kind": entry.kind, **given}, "dataset": dataset, "modality": modality, **control}
        told = facts.pack(rows, out, modality, described, **given)
        print(f"{dataset}/{modality}: {told} of {len(rows)} records have these facts")
        return OK
    if entry.kind == media.STORED:
        from stages.encoders.media.stored import pack

        given = options(pack, entry.options, at)
        described = {"entry": {"name": job.encoder, "kind": entry.kind, **given}, "dataset": dataset, "modality": modality, **control}
        packed = pack(rows, root, out, described, **given)
        print(f"{dataset}/{modality}: {packed.records} of {len(rows)} files packed: {', '.join(packed.modalities)}")
        return OK
    import torch

    from stages.encoders.encoder import resolve_device
    from stages.encoders.media.encoder import Place
    from stages.encoders.media.extraction import fill, listed
    from stages.encoders.weights import WeightsMissing

    files = listed(rows, root, modality)
    torch.set_num_threads(params.compute.threads)
    place = Place(resolve_device(params.compute.device), params.compute.threads, params.backbones_folder)
    about: dict[str, Any] = {"dataset": dataset, "modality": modality, **control}
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


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
