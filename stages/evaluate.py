"""Judge the models of one run on the test images: metrics with intervals, thresholds from held-out images, pictures.

Reads fitted models and features, writes metrics/<dataset>/<model>.json (small, in git) and metrics/<dataset>/<model>/ (tables, predictions,
thresholds, overlays). Maps are compared with masks at protocol.map_size over the whole image. A transductive model scores each test split as one set,
and has no threshold.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import engine, errors, io
from stages.datasets.samples import manifest_samples
from stages.detectors import artefact
from stages.params import Params, RunEntry, load


def main(name: str) -> int:
    params = load()
    run = params.entry("runs", name)
    categories = sorted({sample["category"] for sample in manifest_samples(run.dataset)})
    units = [
        engine.Unit(f"{row}/{category}", {"params": params, "name": name, "row": row, "category": category})
        for row in params.rows(run.model)
        for category in categories
    ]
    outcomes = engine.run(judge, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch",))
    if code := engine.exit_code(name, outcomes):
        return code
    judged = {outcome.key: outcome.value for outcome in outcomes}
    results = {
        row: _write_row(params, name, row, {category: judged[f"{row}/{category}"] for category in categories})
        for row in params.rows(run.model)
    }
    single = results.get(run.model)
    io.write_json(
        Path("metrics", run.dataset, f"{run.model}.json"), single or {"dataset": run.dataset, "model": run.model, "rows": results}
    )
    return errors.OK


def judge(params: Params, name: str, row: str, category: str) -> dict[str, Any]:
    """One unit: one model on one category over all seeds. Writes its pictures; returns what the tables need."""
    import numpy as np

    from stages import detectors
    from stages.metrics.judgement import Rule, judge_category
    from stages.metrics.result import Judged, predictions_of, result_folder
    from stages.types import Refusal

    run, protocol = params.runs[name], params.protocol
    places = [artefact.fitted(artefact.folder(run.dataset, run.model, row, category, seed)) for seed in params.seeds(run)]
    if refused := next(filter(None, map(artefact.refusal, [Path("models", run.dataset, run.model), *places])), None):
        return {"refused": refused}
    splits: dict[str, list[dict[str, Any]]] = {"val": [], "test": []}
    for sample in manifest_samples(run.dataset):
        if sample["category"] == category and (sample["split"] == "val" or sample["split"].startswith("test")):
            splits.setdefault(sample["split"], []).append(sample)
    if transductive := detectors.load(params.rows(run.model)[row].detector).transductive:
        splits["val"] = []  # held-out images speak for a threshold, which there is none of
    try:
        scored = _score(params, run, places, splits)
    except Refusal as reason:
        return {"refused": str(reason)}
    out_of_fold = _out_of_fold(places[0])
    judgement = judge_category(
        scored,
        {split: [sample["group"] for sample in samples] for split, samples in splits.items()},
        {split: np.array([sample["mask"] or sample["label"] == 0 for sample in samples], dtype=bool) for split, samples in splits.items()},
        np.array([image["image_score"] for image in out_of_fold], dtype=np.float32),
        Rule(protocol.fpr_limits, protocol.target_false_alarm_rate, protocol.bootstrap_resamples, protocol.pixel_bins_above),
        transductive,
    )
    folder = result_folder(run.dataset, run.model, row) / category
    io.write_text(folder / "thresholds.txt", judgement.text)
    for file, content in _pictures(params, run, f"{row} on {category}", splits["test"], scored, judgement, transductive).items():
        io.write_bytes(folder / file, content)
    judged = Judged(judgement, predictions_of(params.seeds(run), splits, scored, out_of_fold), out_of_fold)
    config = io.read_json(places[0] / "config.json")
    learnt_from = {"weights": (config["encoder"].get("weights") or {"name": "none"})["name"], "auxiliary": config.get("auxiliary", {})}
    return {"judged": judged, "transductive": transductive, **learnt_from}


def _score(params: Params, run: RunEntry, places: list[Path], splits: dict[str, list[dict[str, Any]]]) -> dict[str, list[Any]]:
    """By split, what the model of each seed sees in it."""
    from stages.detectors.scoring import score_split
    from stages.encoders.batches import open_batches
    from stages.encoders.encoder import resolve_device

    scored: dict[str, list[Any]] = {split: [] for split in splits}
    for place in places:
        detector = artefact.load(place).to(resolve_device(params.compute.device))
        for split, samples in splits.items():
            batches = open_batches(run.dataset, run.encoder, samples, detector.needs.layers, params)
            scored[split].append(score_split(detector, batches, params.protocol.map_size))
    return scored


def _pictures(
    params: Params, run: RunEntry, title: str, samples: list[dict[str, Any]], scored: Any, judgement: Any, transductive: bool
) -> dict[str, bytes]:
    """The histogram and the gallery of the first seed."""
    from stages.encoders.batches import open_batches
    from stages.plots.gallery import Shown, category_files

    test, val = scored["test"][0], scored["val"][0]
    batches = open_batches(run.dataset, run.encoder, samples, (), params)

    shown = Shown(title, test.sample_id, test.label, test.score, test.maps, test.masks, lambda place: batches.picture(place).numpy())
    # The colours of a set that is scored within itself are its own, whatever is good or bad in it.
    known = test.maps if transductive else val.maps[val.label == 0] if val.maps is not None else None
    threshold, rate = judgement.thresholds["conformal"].value, params.protocol.target_false_alarm_rate
    return category_files(shown, judgement.held_out, known if known is not None else (), threshold, rate, params.report.overlays)


def _write_row(params: Params, name: str, row: str, judged: dict[str, Any]) -> dict[str, Any]:
    """The tables of one model over its categories; returns its result as it stands in git."""
    from stages.metrics.result import result_folder, result_of, write_tables

    run = params.runs[name]
    done = {category: value for category, value in judged.items() if "refused" not in value}
    weights = next((value["weights"] for value in done.values()), None)
    about = {"dataset": run.dataset, "model": row, "label": params.rows(run.model)[row].label, "encoder": run.encoder, "weights": weights}
    if auxiliary := next((value["auxiliary"] for value in done.values()), {}):
        about["auxiliary"] = auxiliary
    if any(value["transductive"] for value in done.values()):
        about |= {"label": ", ".join(filter(None, [about["label"], "transductive"])), "transductive": True}
    refused = {category: value["refused"] for category, value in judged.items() if "refused" in value}
    judged = {category: value["judged"] for category, value in done.items()}
    result = result_of(about | {"seeds": params.seeds(run)}, {category: one.judgement for category, one in judged.items()}, refused)
    write_tables(result_folder(run.dataset, run.model, row), result, judged)
    return result


def _out_of_fold(place: Path) -> list[dict[str, Any]]:
    path = place / "out_of_fold.parquet"
    return io.read_table(path) if path.is_file() else []


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
