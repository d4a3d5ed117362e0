"""Fit the models of one run: every row, every category, every seed.

Reads the manifest and the features of one data set, writes models/<dataset>/<model>/. A run that cannot be (weights absent, too few images) leaves
its reason there instead; a crash lets the other units finish and then fails the stage.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from stages import engine, errors, io
from stages.detectors import artefact
from stages.params import Params, ParamsError, load

RESUME = Path(".assay/resume")


def main(name: str) -> int:
    params = load()
    run = params.entry("runs", name)
    out = Path("models", run.dataset, run.model)
    refused = io.read_json(Path("features", run.dataset, run.encoder, "encoder.json")).get("refused")
    if refused:
        print(f"{name}: {refused}")
        artefact.refuse(out, refused)
        return errors.OK
    categories = sorted({row["category"] for row in _manifest(run.dataset)})
    units = [
        engine.Unit(f"{row}/{category}/seed{seed}", {"params": params, "name": name, "row": row, "category": category, "seed": seed})
        for row in params.rows(run.model)
        for category in categories
        for seed in params.seeds(run)
    ]
    outcomes = engine.run(
        fit, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    if engine.crashed(name, outcomes):
        return errors.DEFECT
    shutil.rmtree(RESUME / name, ignore_errors=True)
    return errors.OK


def fit(params: Params, name: str, row: str, category: str, seed: int) -> None:
    """One unit: one model on one category with one seed, written to its folder."""
    from stages import detectors
    from stages.training import Run
    from stages.types import Refusal

    run, entry = params.runs[name], params.rows(params.runs[name].model)[row]
    place = artefact.folder(run.dataset, run.model, row, category, seed)
    rows = [sample for sample in _manifest(run.dataset) if sample["category"] == category]
    train, val = ([sample for sample in rows if sample["split"] == split] for split in ("train", "val"))
    config = {
        "model": row,
        "detector": entry.detector,
        "options": entry.options,
        "seed": seed,
        "encoder": io.read_json(Path("features", run.dataset, run.encoder, "encoder.json")),
        "data": io.content_hash(train + val),
    }
    code = [io.file_hash(path) for path in sorted({*Path(run.code).rglob("*.py"), Path(run.code)}) if path.is_file()]
    state = RESUME / name / io.content_hash([config, category, code])[:16]
    session = Run(seed=seed, device=params.compute.device, resume=state, label=f"{name} {row} {category} seed {seed}")

    def make() -> Any:
        return detectors.build(entry.detector, entry.options, at=("models", run.model))

    try:
        detector = make()
        _require_backbone(detector.needs.backbone, config["encoder"]["entry"], run.model)
        select = _selector(params, run, detector, train)
        detector.fit(select(range(len(train))), _selector(params, run, detector, val)(range(len(val))), session)
        if detector.one_pass and seed == params.seeds(run)[0]:
            _write_out_of_fold(place, make, select, train, params.protocol.folds, Run(seed=seed, device=params.compute.device, quiet=True))
        artefact.save(place, detector, config, session.history)
    except Refusal as reason:
        print(f"{name} {category}: {reason}")
        artefact.refuse(place, str(reason))


def _require_backbone(asked: str | None, entry: dict[str, Any], model: str) -> None:
    """A student is compared with its teacher: both must be the same network."""
    if asked and asked.split(".")[0] != str(entry.get("backbone")).split(".")[0]:
        own, given = f"models.{model}.backbone is {asked}", f"encoders.{entry['name']}.backbone is {entry.get('backbone')}"
        raise ParamsError(f"params.yaml: {own}, but {given}: teacher and student must be the same network, change one of the two")


def _selector(params: Params, run: Any, detector: Any, samples: list[dict[str, Any]]) -> Any:
    from stages.encoders.batches import open_batches

    def select(positions: Any) -> Any:
        chosen = [samples[position] for position in positions]
        return open_batches(run.dataset, run.encoder, chosen, detector.needs.layers, params)

    return select


def _write_out_of_fold(place: Path, make: Any, select: Any, train: list[dict[str, Any]], folds: int, session: Any) -> None:
    from stages.detectors.out_of_fold import out_of_fold_scores

    scores = out_of_fold_scores(make, select, [sample["group"] for sample in train], folds, session)
    columns = {key: [sample[key] for sample in train] for key in ("sample_id", "category", "label")}
    io.write_table(place / "out_of_fold.parquet", {**columns, "image_score": scores})


def _manifest(dataset: str) -> list[dict[str, Any]]:
    return io.read_json(Path("data", dataset, "manifest.json"))["samples"]


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
