"""Fit the detectors of signals of one run: every row, every category, every seed.

Reads the manifest and the recordings of one data set, writes models/<dataset>/<model>/. What a fit may know of the anomalies in its training data is
the regime of the model: nothing (their labels are taken away, or the anomalous steps are cut out), or, in the regime `weak`, where they are.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages import engine, errors, io
from stages.datasets.segments import categories_of, fingerprint, known_in, normal_parts, open_segments, variables_of
from stages.params import Params, fields_of, load
from stages.timeseries import artefact

RESUME = Path(".assay/resume")


def main(name: str) -> int:
    params = load()
    run = params.signals.entry("runs", name)
    units = [
        engine.Unit(f"{row}/{category}/seed{seed}", {"params": params, "name": name, "row": row, "category": category, "seed": seed})
        for seed in params.signals.seeds(run)
        for row in params.signals.rows(run.model)
        for category in categories_of(run.dataset)
    ]
    outcomes = engine.run(
        fit, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    code = engine.exit_code(name, outcomes)
    if code == errors.OK:
        shutil.rmtree(RESUME / name, ignore_errors=True)
    return code


def fit(params: Params, name: str, row: str, category: str, seed: int) -> None:
    """Fit one detector on one category and write it to its folder, or the reason why it cannot be had."""
    from stages import timeseries
    from stages.training import Run
    from stages.types import Refusal

    run = params.signals.runs[name]
    entry = params.signals.rows(run.model)[row]
    place = artefact.folder(run.dataset, run.model, row, category, seed)
    taken = fields_of(timeseries.load(entry.detector))
    options = entry.options | ({"regime": entry.regime} if "regime" in taken else {})
    config = {
        "model": row,
        "detector": entry.detector,
        "options": options,
        "regime": entry.regime,
        "seed": seed,
        "variables": variables_of(run.dataset, category),
        "data": fingerprint(run.dataset, category),
    }
    code = [io.file_hash(path) for path in sorted({*Path(run.code).rglob("*.py"), Path(run.code)}) if path.is_file()]
    state = RESUME / name / io.content_hash([config, category, code])[:16]
    try:
        detector = timeseries.build(entry.detector, options, at=("series", "models", run.model))
        if entry.regime not in detector.regimes:
            raise Refusal(f"{type(detector).__name__} cannot learn in the regime {entry.regime}; it knows {', '.join(detector.regimes)}")
        train = known_in(entry.regime, open_segments(run.dataset, category, "train"))
        val = [segment._replace(label=None) for segment in normal_parts(open_segments(run.dataset, category, "val"))]
        session = Run(
            seed=seed,
            device=params.compute.device,
            resume=state,
            label=f"{name} {row} {category} seed {seed}",
            category=category,
            dataset=run.dataset,
        )
        detector.to(session.device).fit(train, val, session)
        artefact.save(place, detector, config, session.history)
    except Refusal as reason:
        print(f"{name} {category}: {reason}")
        artefact.refuse(place, str(reason))


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
