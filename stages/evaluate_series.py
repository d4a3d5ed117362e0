"""Judge the detectors of signals of one run on the test steps: metrics with intervals, thresholds from normal steps that no fit saw, tables per kind.

Reads fitted detectors and recordings, writes metrics/<dataset>/<model>.json (small, in git) and metrics/<dataset>/<model>/ (tables, predictions,
thresholds, draws).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import engine, errors, io
from stages.datasets.recordings import Segment
from stages.datasets.segments import categories_of, normal_parts, open_segments, regions_in, variables_of
from stages.params import Params, load
from stages.timeseries import artefact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stages.timeseries.detector import Reading, SeriesDetector


def main(name: str) -> int:
    params = load()
    run = params.signals.entry("runs", name)
    categories = categories_of(run.dataset)
    units = [
        engine.Unit(f"{row}/{category}", {"params": params, "name": name, "row": row, "category": category})
        for row in params.signals.rows(run.model)
        for category in categories
    ]
    outcomes = engine.run(judge, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch",))
    if code := engine.exit_code(name, outcomes):
        return code
    judged = {outcome.key: outcome.value for outcome in outcomes}
    results = {
        row: _write_row(params, name, row, {category: judged[f"{row}/{category}"] for category in categories})
        for row in params.signals.rows(run.model)
    }
    single = results.get(run.model)
    path = Path("metrics", run.dataset, f"{run.model}.json")
    io.write_json(path, single or {"dataset": run.dataset, "model": run.model, "rows": results})
    return errors.OK


def judge(params: Params, name: str, row: str, category: str) -> dict[str, Any]:
    """One unit: one detector on one category over all seeds; returns what the tables need."""
    import numpy as np

    from stages.metrics.series_judgement import SeriesRule, judge_series
    from stages.metrics.series_result import counts_at, predictions_of
    from stages.metrics.series_tables import attribution_hits

    signals, run = params.signals, params.signals.runs[name]
    seeds, protocol = signals.seeds(run), signals.protocol
    places = [artefact.folder(run.dataset, run.model, row, category, seed) for seed in seeds]
    if refused := next(filter(None, map(artefact.refusal, places)), None):
        return {"refused": refused}
    test, unseen = open_segments(run.dataset, category, "test"), normal_parts(open_segments(run.dataset, category, "threshold"))
    if any(segment.label is None for segment in test):
        return {"refused": "the test steps have no labels, so there is nothing to judge"}
    detectors, (seen, normal) = _open(params, places, test, unseen)
    first = [detectors[0].read(values) for values in seen]
    tested = [[one.score.cpu().numpy() for one in first], *_scores(detectors[1:], seen)]
    held_out = _scores(detectors, normal)
    rule = SeriesRule(
        protocol.vus_buffer, protocol.disturbed_steps, tuple(protocol.false_alarm_quantiles), protocol.bootstrap_resamples
    )
    regions = regions_in(run.dataset, category, test)
    laid, label = [np.concatenate(scores) for scores in tested], np.concatenate([segment.label for segment in test])
    judgement = judge_series(
        np.stack(laid),
        label,
        [np.concatenate(scores) if scores else np.empty(0) for scores in held_out],
        rule,
        [segment.steps for segment in test],
        regions,
    )
    splits = [(split, segments, scores) for split, segments, scores in (("test", test, tested), ("threshold", unseen, held_out)) if segments]
    predictions = [
        predictions_of(category, split, seed, segments, scores[position])
        for split, segments, scores in splits
        for position, seed in enumerate(seeds)
    ]
    shares = _attribution(first)
    blamed = None if shares is None else attribution_hits(shares, regions, variables_of(run.dataset, category))
    found = {"attribution": shares, "blamed": blamed, "parts": _parts(first, label, protocol.vus_buffer)}
    return {"judged": judgement, "counts": counts_at(judgement, laid, label), "predictions": predictions, **found}


def _open(params: Params, places: Sequence[Path], *splits: Sequence[Segment]) -> tuple[list[SeriesDetector], list[list[Tensor]]]:
    """The fitted detectors, and the values of each split's segments, on the device."""
    import torch

    from stages.training import Run

    device = Run(seed=0, device=params.compute.device).device
    raw = [[torch.from_numpy(segment.values).to(device) for segment in segments] for segments in splits]
    return [artefact.load(place).to(device) for place in places], raw


def _scores(detectors: Sequence[SeriesDetector], raw: Sequence[Tensor]) -> list[list[np.ndarray]]:
    """By detector and segment, (T,) each."""
    return [[one.score(values).cpu().numpy() for values in raw] for one in detectors]


def _attribution(readings: Sequence[Reading]) -> np.ndarray | None:
    """(T, V) what each variable adds to the score of a step; None where the method cannot say."""
    import numpy as np

    shares = [one.attribution for one in readings]
    return None if any(one is None for one in shares) else np.concatenate([one.cpu().numpy() for one in shares])


def _parts(readings: Sequence[Reading], label: np.ndarray, buffer: int) -> dict[str, dict[str, float]]:
    """What the parts of a method are worth alone: name of the part -> metric -> value."""
    import numpy as np

    from stages.metrics.inputs import Undefined
    from stages.metrics.ranking import average_precision
    from stages.metrics.vus import vus

    found, lengths = [one.components for one in readings], [len(one.score) for one in readings]
    scores = {part: np.concatenate([one[part].cpu().numpy() for one in found]) for part in found[0]}
    try:
        volumes = {part: vus(score, label, buffer, lengths)[1] for part, score in scores.items()}
        return {part: {"vus_pr": volumes[part], "pr_auc": average_precision(score, label)} for part, score in scores.items()}
    except Undefined:
        return {}


def _write_row(params: Params, name: str, row: str, judged: dict[str, Any]) -> dict[str, Any]:
    """The tables of one detector over its categories; returns its result as it stands in git."""
    from stages.metrics.result import result_folder
    from stages.metrics.series_result import series_result, write_series_tables

    run, entry = params.signals.runs[name], params.signals.rows(params.signals.runs[name].model)[row]
    refused = {category: value["refused"] for category, value in judged.items() if "refused" in value}
    done = {category: value["judged"] for category, value in judged.items() if category not in refused}
    about = {"dataset": run.dataset, "model": row, "label": entry.label, "regime": entry.regime, "seeds": params.signals.seeds(run)}
    result = series_result(about, done, {category: judged[category]["counts"] for category in done}, refused)
    predictions = [rows for category in done for rows in judged[category]["predictions"]]
    if parts := {category: judged[category]["parts"] for category in done if judged[category]["parts"]}:
        result["parts"] = parts
    if blamed := {category: judged[category]["blamed"] for category in done if judged[category]["blamed"]}:
        result["attribution_hits"] = blamed
    folder = result_folder(run.dataset, run.model, row)
    write_series_tables(folder, result, done, predictions)
    for category in done:
        if (shares := judged[category]["attribution"]) is not None:
            columns = dict(zip(variables_of(run.dataset, category), shares.T, strict=True))
            io.write_table(folder / category / "attribution.parquet", columns)
    return result


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
