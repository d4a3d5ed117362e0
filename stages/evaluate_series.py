"""Judge the detectors of signals of one run on the test steps: metrics with intervals, thresholds from held-out normal steps, tables per kind.

Reads fitted detectors and recordings, writes metrics/<dataset>/<model>.json (small, in git) and metrics/<dataset>/<model>/ (tables, predictions,
thresholds, draws).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import engine, errors, io
from stages.datasets.recordings import Region, Segment
from stages.datasets.segments import categories_of, normal_parts, open_segments, regions_of
from stages.params import Params, load
from stages.timeseries import artefact

if TYPE_CHECKING:
    import numpy as np


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
    from stages.metrics.series_result import predictions_of

    signals, run = params.signals, params.signals.runs[name]
    seeds, protocol = signals.seeds(run), signals.protocol
    places = [artefact.folder(run.dataset, run.model, row, category, seed) for seed in seeds]
    if refused := next(filter(None, map(artefact.refusal, places)), None):
        return {"refused": refused}
    test, val = open_segments(run.dataset, category, "test"), normal_parts(open_segments(run.dataset, category, "val"))
    if any(segment.label is None for segment in test):
        return {"refused": "the test steps have no labels, so there is nothing to judge"}
    tested, held_out = ([_score(params, place, segments) for place in places] for segments in (test, val))
    rule = SeriesRule(
        protocol.vus_buffer, protocol.disturbed_steps, tuple(protocol.false_alarm_quantiles), protocol.bootstrap_resamples
    )
    judgement = judge_series(
        np.stack([np.concatenate(scores) for scores in tested]),
        np.concatenate([segment.label for segment in test]),
        [np.concatenate(scores) if scores else np.empty(0) for scores in held_out],
        rule,
        [segment.steps for segment in test],
        placed(regions_of(run.dataset, category), test),
    )
    splits = [(split, segments, scores) for split, segments, scores in (("test", test, tested), ("val", val, held_out)) if segments]
    predictions = [
        predictions_of(category, split, seed, segments, scores[position])
        for split, segments, scores in splits
        for position, seed in enumerate(seeds)
    ]
    return {"judged": judgement, "predictions": predictions}


def placed(regions: dict[str, list[Region]], segments: Sequence[Segment]) -> list[Region]:
    """The known anomalies on the axis of the segments laid end to end, those cut off that reach out of theirs."""
    found, offset = [], 0
    for segment in segments:
        for region in regions.get(segment.recording, ()):
            start, stop = max(region.start, segment.start), min(region.stop, segment.start + segment.steps)
            if start < stop:
                found.append(region._replace(start=start - segment.start + offset, stop=stop - segment.start + offset))
        offset += segment.steps
    return found


def _score(params: Params, place: Path, segments: Sequence[Segment]) -> list[np.ndarray]:
    import torch

    from stages.training import Run

    device = Run(seed=0, device=params.compute.device).device
    detector = artefact.load(place).to(device)
    return [detector.score(torch.from_numpy(segment.values).to(device)).cpu().numpy() for segment in segments]


def _write_row(params: Params, name: str, row: str, judged: dict[str, Any]) -> dict[str, Any]:
    """The tables of one detector over its categories; returns its result as it stands in git."""
    from stages.metrics.result import result_folder
    from stages.metrics.series_result import series_result, write_series_tables

    run, entry = params.signals.runs[name], params.signals.rows(params.signals.runs[name].model)[row]
    refused = {category: value["refused"] for category, value in judged.items() if "refused" in value}
    done = {category: value["judged"] for category, value in judged.items() if category not in refused}
    about = {"dataset": run.dataset, "model": row, "label": entry.label, "regime": entry.regime, "seeds": params.signals.seeds(run)}
    result = series_result(about, done, refused)
    predictions = [rows for category in done for rows in judged[category]["predictions"]]
    write_series_tables(result_folder(run.dataset, run.model, row), result, done, predictions)
    return result


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
