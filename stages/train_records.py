"""Fit the detectors of records of one run: every row, every seed.

Reads the manifest and the stored tokens of one data set, writes models/<dataset>/<model>/. A detector that learns from normal records alone is shown
no others; validation is for stopping early. One that draws nothing is fitted with the first seed only. Options of the command (`--help`) fit one row by
hand, into a folder of its own where it differs from params.yaml: see stages/fusion/one_off.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages import engine, errors, io
from stages.datasets import setting_range
from stages.datasets.record_sets import fingerprint, open_split, refused_stores
from stages.fusion import artefact, one_off
from stages.fusion.one_off import PLAIN, OneOff
from stages.params import Params, load

RESUME = Path(".assay/resume")


def main(name: str, asked: OneOff = PLAIN) -> int:
    params = load()
    task = params.record_task
    run = task.entry("runs", name)
    for modality, reason in refused_stores(run.dataset).items():
        print(f"{name}: {run.dataset} has no {modality}: {reason}")
    data = fingerprint(run.dataset)
    units = [
        engine.Unit(f"{row}/seed{seed}", {"params": params, "name": name, "row": row, "seed": seed, "data": data, "asked": asked})
        for seed in (task.seeds(run) if asked.seed is None else [asked.seed])
        for row in asked.rows(list(task.rows(run.model)))
    ]
    outcomes = engine.run(
        fit, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    code = engine.exit_code(name, outcomes)
    if code == errors.OK and asked == PLAIN:
        shutil.rmtree(RESUME / name, ignore_errors=True)
    return code


def fit(params: Params, name: str, row: str, seed: int, data: str, asked: OneOff = PLAIN) -> None:
    """Fit one detector and write it to its folder, or the reason why it cannot be had. data: the fingerprint of the data set."""
    from stages import fusion
    from stages.training import Run
    from stages.types import Refusal

    task = params.record_task
    run = task.runs[name]
    entry = task.rows(run.model)[row]
    if asked.seed is None and seed not in artefact.seeds(entry.detector, task.seeds(run)):
        return
    place = asked.root / artefact.folder(run.dataset, run.model, row, seed)
    options = asked.options(entry.detector, entry.options)
    config = {"model": row, "detector": entry.detector, "options": options, "seed": seed, "data": data}
    config |= {"shown": entry.modalities} if entry.modalities else {}
    code = [
        io.file_hash(path)
        for path in sorted({*Path(run.code).rglob("*.py"), *Path(run.maths).rglob("*.py"), Path(run.code)})
        if path.is_file()
    ]
    state = RESUME / name / io.content_hash([config, code, *(["quick test"] if asked.quick_test else [])])[:16]
    try:
        detector = fusion.build(entry.detector, options, at=("records", "models", run.model))
        heard = one_off.keeper(detector, place / "last", asked.keep_last)
        session = Run(seed=seed, device=params.compute.device, resume=state, label=f"{name} {row} seed {seed}", dataset=run.dataset, heard=heard)
        train, val = (asked.few(open_split(run.dataset, split, modalities=entry.modalities)) for split in ("train", "val"))
        if asked.debug:
            print(f"{name} {row}\n{one_off.first_batch(detector, train, seed)}")
        detector.to(session.device).fit(train, val, session)
        learnt = [name for name, label in zip(train.record_ids, train.label.tolist()) if detector.supervised or label == 0]
        artefact.save(place, detector, config | {"settings": setting_range.seen(run.dataset, learnt)}, session.history)
        if asked != PLAIN:  # what the pipeline has begun of other rows and seeds stays
            shutil.rmtree(state, ignore_errors=True)
        if asked.differs:
            print(f"{name} {row}: written to {place.as_posix()}; models/ is as it was")
    except Refusal as reason:
        print(f"{name} {row}: {reason}")
        artefact.refuse(place, str(reason))


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(*one_off.parsed(sys.argv[1:]))))
