"""Fit the detectors of records of one run: every row, every seed.

Reads the manifest and the stored tokens of one data set, writes models/<dataset>/<model>/. A detector that learns from normal records alone is shown
no others; validation is for stopping early. One that draws nothing is fitted with the first seed only.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages import engine, errors, io
from stages.datasets.record_sets import fingerprint, open_split, refused_stores
from stages.fusion import artefact
from stages.params import Params, load

RESUME = Path(".assay/resume")


def main(name: str) -> int:
    params = load()
    task = params.record_task
    run = task.entry("runs", name)
    for modality, reason in refused_stores(run.dataset).items():
        print(f"{name}: {run.dataset} has no {modality}: {reason}")
    data = fingerprint(run.dataset)
    units = [
        engine.Unit(f"{row}/seed{seed}", {"params": params, "name": name, "row": row, "seed": seed, "data": data})
        for seed in task.seeds(run)
        for row in task.rows(run.model)
    ]
    outcomes = engine.run(
        fit, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    code = engine.exit_code(name, outcomes)
    if code == errors.OK:
        shutil.rmtree(RESUME / name, ignore_errors=True)
    return code


def fit(params: Params, name: str, row: str, seed: int, data: str) -> None:
    """Fit one detector and write it to its folder, or the reason why it cannot be had. data: the fingerprint of the data set."""
    from stages import fusion
    from stages.training import Run
    from stages.types import Refusal

    task = params.record_task
    run = task.runs[name]
    entry = task.rows(run.model)[row]
    if seed not in artefact.seeds(entry.detector, task.seeds(run)):
        return
    place = artefact.folder(run.dataset, run.model, row, seed)
    config = {"model": row, "detector": entry.detector, "options": entry.options, "seed": seed, "data": data}
    config |= {"shown": entry.modalities} if entry.modalities else {}
    code = [
        io.file_hash(path)
        for path in sorted({*Path(run.code).rglob("*.py"), *Path(run.maths).rglob("*.py"), Path(run.code)})
        if path.is_file()
    ]
    state = RESUME / name / io.content_hash([config, code])[:16]
    try:
        detector = fusion.build(entry.detector, entry.options, at=("records", "models", run.model))
        session = Run(seed=seed, device=params.compute.device, resume=state, label=f"{name} {row} seed {seed}", dataset=run.dataset)
        train, val = (open_split(run.dataset, split, modalities=entry.modalities) for split in ("train", "val"))
        detector.to(session.device).fit(train, val, session)
        artefact.save(place, detector, config, session.history)
    except Refusal as reason:
        print(f"{name} {row}: {reason}")
        artefact.refuse(place, str(reason))


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
