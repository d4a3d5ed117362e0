"""Fit the models of one run: every row, every category, every seed.

Reads the manifest and the features of one data set, writes models/<dataset>/<model>/. A run that cannot be (weights absent, too few images) leaves
its reason there instead; a crash lets the other units finish and then fails the stage.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import engine, errors, io
from stages.datasets.samples import manifest_samples
from stages.datasets.shots import references
from stages.detectors import artefact
from stages.params import Params, ParamsError, RunEntry, load

if TYPE_CHECKING:
    from stages.types import Batches, Detector

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
    categories = sorted({sample["category"] for sample in manifest_samples(run.dataset)})
    parts = [("folds", fit_folds, params.seeds(run)[0])] + [(f"seed{seed}", fit, seed) for seed in params.seeds(run)]
    units = [  # the folds first: the longest work should not start last
        engine.Unit(
            f"{row}/{category}/{part}", {"step": step, "params": params, "name": name, "row": row, "category": category, "seed": seed}
        )
        for part, step, seed in parts
        for row, entry in params.rows(run.model).items()
        for category in ([artefact.EVERY] if entry.options.get("multi_class") else categories)
    ]
    outcomes = engine.run(
        work, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    code = engine.exit_code(name, outcomes)
    if code == errors.OK:
        shutil.rmtree(RESUME / name, ignore_errors=True)
    return code


def work(step: Callable[..., None], params: Params, name: str, row: str, category: str, seed: int) -> None:
    """One unit: `step` (fit or fit_folds) for one model on one category with one seed."""
    step(params, name, row, category, seed)


def fit(params: Params, name: str, row: str, category: str, seed: int) -> None:
    """Fit the model on the training images and write it to its folder, or the reason why it cannot be had."""
    from stages.detectors.prediction import require_whole_images
    from stages.encoders.encoder import text_tower
    from stages.training import Run
    from stages.types import Refusal

    run, entry = params.runs[name], params.rows(params.runs[name].model)[row]
    place = artefact.folder(run.dataset, run.model, row, category, seed)
    train, val = (_samples(run.dataset, category, split) for split in ("train", "val"))
    train = references(train, entry.shots, seed)
    config = {
        "model": row,
        "detector": entry.detector,
        "options": entry.options,
        "seed": seed,
        "encoder": io.read_json(Path("features", run.dataset, run.encoder, "encoder.json")),
        "data": io.content_hash(train if entry.shots is not None else train + val),
    }
    code = [io.file_hash(path) for path in sorted({*Path(run.code).rglob("*.py"), Path(run.code)}) if path.is_file()]
    label = f"{name} {row} {category} seed {seed}"
    try:
        if entry.shots and len(train) < entry.shots:
            raise Refusal(f"{entry.shots} normal images are asked for, {category} has {len(train)} to learn from")
        detector = _make(params, run, row)
        if entry.shots == 0 and not detector.zero_shot:
            raise Refusal(f"{type(detector).__name__} cannot do without normal images: shots must be at least 1")
        _require_backbone(detector.needs.backbone, config["encoder"]["entry"], run.model)
        normal, held_out = (_batches(params, run, detector, samples) for samples in (train, val))
        require_whole_images(detector, normal)
        aux = _auxiliary(params, detector.needs.aux, normal)
        config |= {"auxiliary": {name: images.name for name, images in aux.items()}} if aux else {}
        state = RESUME / name / io.content_hash([config, category, code])[:16]
        session = Run(
            seed=seed,
            device=params.compute.device,
            resume=state,
            label=label,
            aux=aux,
            backbones=params.backbones_folder,
            category=category,
            dataset=run.dataset,
            text=text_tower(config["encoder"], params.compute.device, params.compute.threads, params.backbones_folder),
        )
        detector.fit(normal, None if entry.shots is not None else held_out, session)  # k-shot means that no more than k images are seen
        config |= {"auxiliary": config.get("auxiliary", {}) | session.learnt_from} if session.learnt_from else {}
        artefact.save(place, detector, config, session.history)
    except Refusal as reason:
        print(f"{name} {category}: {reason}")
        artefact.refuse(place, str(reason))


def fit_folds(params: Params, name: str, row: str, category: str, seed: int) -> None:
    """Held-out scores of the training images, for models whose fit is one cheap pass; without them validation images speak alone.

    A few shots are too few to hold one out.
    """
    from stages.detectors.out_of_fold import out_of_fold_scores
    from stages.training import Run
    from stages.types import Refusal

    run, train = params.runs[name], _samples(params.runs[name].dataset, category, "train")

    def select(positions: Sequence[int]) -> Batches:
        return _batches(params, run, detector, [train[position] for position in positions])

    try:
        detector = _make(params, run, row)
        if not detector.one_pass or params.rows(run.model)[row].shots is not None:
            return
        groups, session = [sample["group"] for sample in train], Run(seed=seed, device=params.compute.device, quiet=True)
        scores = out_of_fold_scores(lambda: _make(params, run, row), select, groups, params.protocol.folds, session)
    except Refusal as reason:
        print(f"{name} {category}: no out-of-fold scores. {reason}")
        return
    columns = {key: [sample[key] for sample in train] for key in ("sample_id", "category", "label")}
    place = artefact.folder(run.dataset, run.model, row, category, seed)
    io.write_table(place / "out_of_fold.parquet", {**columns, "image_score": scores})


def _batches(params: Params, run: RunEntry, detector: Detector, samples: list[dict[str, Any]]) -> Batches:
    from stages.encoders import batches

    return batches.open_batches(run.dataset, run.encoder, samples, detector.needs.layers, params)


def _auxiliary(params: Params, names: Sequence[str], normal: Batches) -> dict[str, Any]:
    """The images that a model learns from beside the user's own, by name; each says in its `name` what they are."""
    if not names:
        return {}
    from stages.datasets.auxiliary import auxiliary_batches

    pixels = normal.take(list(range(normal.samples))).features["pixels"]
    return {name: auxiliary_batches(name, getattr(params.auxiliary, name), pixels) for name in names}


def _make(params: Params, run: RunEntry, row: str) -> Detector:
    from stages import detectors

    entry = params.rows(run.model)[row]
    return detectors.build(entry.detector, entry.options, at=("models", run.model))


def _samples(dataset: str, category: str, split: str) -> list[dict[str, Any]]:
    own = [sample for sample in manifest_samples(dataset) if sample["split"] == split]
    return own if category == artefact.EVERY else [sample for sample in own if sample["category"] == category]


def _require_backbone(asked: str | None, entry: dict[str, Any], model: str) -> None:
    """A student is compared with its teacher: both must be the same network."""
    if asked and asked.split(".")[0] != str(entry.get("backbone")).split(".")[0]:
        own, given = f"models.{model}.backbone is {asked}", f"encoders.{entry['name']}.backbone is {entry.get('backbone')}"
        raise ParamsError(f"params.yaml: {own}, but {given}: teacher and student must be the same network, change one of the two")


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
