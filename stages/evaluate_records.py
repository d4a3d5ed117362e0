"""Judge the detectors of records of one run on the test records: metrics with intervals, with and without each modality, and what each contributes.

Reads fitted detectors and stored tokens, writes metrics/<dataset>/<model>.json (small, in git) and metrics/<dataset>/<model>/ (tables, predictions,
thresholds, draws). A detector that tells classes is judged by them too, its neighbours being the records that it learnt from.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import engine, errors, io
from stages.datasets.record_sets import judged_rows, open_split, subset_of
from stages.fusion import artefact
from stages.params import Params, load

if TYPE_CHECKING:
    import numpy as np

    from stages.datasets.record_store import Subset
    from stages.fusion.detector import RecordDetector
    from stages.metrics.record_classes import ClassJudgement
    from stages.metrics.record_judgement import Judged, RecordRule
    from stages.metrics.subsets import SubsetTable

MOST_COUNTED = 2048  # records that the use of experts is counted over
NO_VAL = "there is no validation record to say what is believed of a record that shows nothing"


def main(name: str) -> int:
    params = load()
    task = params.record_task
    run = task.entry("runs", name)
    units = [engine.Unit(row, {"params": params, "name": name, "row": row}) for row in task.rows(run.model)]
    outcomes = engine.run(judge, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch",))
    if code := engine.exit_code(name, outcomes):
        return code
    results = {outcome.key: outcome.value for outcome in outcomes}
    single = results[run.model] if list(results) == [run.model] else None
    io.write_json(
        Path("metrics", run.dataset, f"{run.model}.json"), single or {"dataset": run.dataset, "model": run.model, "rows": results}
    )
    return errors.OK


def judge(params: Params, name: str, row: str) -> dict[str, Any]:
    """One unit: one detector over all seeds; writes its tables and returns its result as it stands in git."""
    from stages.metrics.record_classes import learning_csv
    from stages.metrics.record_judgement import RecordRule, judge_records
    from stages.metrics.record_result import RowTables, record_result, write_record_tables
    from stages.metrics.result import result_folder
    from stages.training import Run

    task, run = params.record_task, params.record_task.runs[name]
    entry = task.rows(run.model)[row]
    seeds = artefact.seeds(entry.detector, task.seeds(run))
    about = {"dataset": run.dataset, "model": row, "label": entry.label, "seeds": seeds}
    places = [artefact.folder(run.dataset, run.model, row, seed) for seed in seeds]
    if refused := next(filter(None, map(artefact.refusal, places)), None):
        return about | {"refused": refused}
    rows = {split: judged_rows(run.dataset, split) for split in ("test", "val")}
    if not rows["test"]:
        return about | {"refused": "no test record has a label, so there is nothing to judge"}
    device = Run(seed=0, device=params.compute.device).device
    detectors = [artefact.load(place).to(device) for place in places]
    records = {split: subset_of(own, run.dataset, modalities=entry.modalities) for split, own in rows.items()}
    judged = _judged(detectors, records, rows, device)
    rule = RecordRule(task.protocol.target_false_alarm_rate, task.protocol.bootstrap_resamples)
    table, contributions = _subsets(detectors, records["test"], judged, rule.resamples, device)
    first = detectors[0]
    judgement = judge_records(judged["test"], judged["val"], rule, first.supervised, table if isinstance(table, str) else table.area)
    found = RowTables(
        judgement,
        {split: (judged[split], [one["record_id"] for one in own]) for split, own in rows.items()},
        None if isinstance(table, str) else table,
        contributions,
        _experts(first, records["test"], device),
        _classes(detectors, open_split(run.dataset, "train", modalities=entry.modalities), records, judged, rule, device),
    )
    folder = result_folder(run.dataset, run.model, row)
    write_record_tables(folder, seeds, found)
    if found.classes:
        histories = {seed: io.read_json(place / "history.json") for seed, place in zip(seeds, places, strict=True)}
        io.write_text(folder / "learning.csv", learning_csv(histories))
        io.write_table(folder / "spans.parquet", _spans(first, records["test"], device))
    counts = {split: len(own) for split, own in rows.items()}
    kind = {"supervised": first.supervised, "modalities": list(first.widths), "records": counts} | ({"blind": first.blind} if first.blind else {})
    return record_result(about | kind, found)


def _judged(detectors: list[RecordDetector], records: dict[str, Subset], rows: dict[str, list[dict[str, Any]]], device: Any) -> dict[str, Judged]:
    """By split; a record that shows a detector nothing has the score that it gives where nothing is known."""
    import numpy as np

    from stages.fusion.scoring import nothing_known, scores, shows
    from stages.metrics.record_judgement import Judged

    there = {split: shows(own) for split, own in records.items()}
    found = {split: np.stack([scores(detector, own, device) for detector in detectors]) for split, own in records.items()}
    prior = np.array([[nothing_known(detector, score[there["val"]])] for detector, score in zip(detectors, found["val"], strict=True)])
    return {
        split: Judged(
            np.where(there[split], found[split], prior),
            records[split].label.numpy(),
            [row["group"] or row["record_id"] for row in own],
            [row["fault"] or "" for row in own],
        )
        for split, own in rows.items()
    }


def _subsets(
    detectors: list[RecordDetector], test: Subset, judged: dict[str, Judged], resamples: int, device: Any
) -> tuple[SubsetTable | str, dict[str, Any] | None]:
    """The table of subsets over all seeds or why there is none, and what each modality contributes to the scores of the first seed."""
    import numpy as np

    from stages.fusion.scoring import nothing_known, subset_scores, subsets
    from stages.metrics.inputs import Undefined
    from stages.metrics.subsets import judge_subsets

    if not judged["val"].score.shape[1]:
        return NO_VAL, None
    names = list(detectors[0].widths)
    masks = subsets(len(names))
    priors = [nothing_known(detector, score) for detector, score in zip(detectors, judged["val"].score, strict=True)]
    found = [subset_scores(detector, test, masks, prior, device) for detector, prior in zip(detectors, priors, strict=True)]
    contributions = _contributions(test, judged["test"], found[0], priors[0], names)
    try:
        score = {mask: np.stack([one[mask] for one in found]) for mask in masks}
        return judge_subsets(score, names, judged["test"].label, np.asarray(judged["test"].group), resamples), contributions
    except Undefined as undefined:
        return str(undefined), contributions


def _contributions(test: Subset, judged: Judged, score: dict[int, np.ndarray], prior: float, names: list[str]) -> dict[str, Any] | None:
    """None where there are too many modalities to score every subset of them."""
    from stages.metrics.record_result import contributions_of
    from stages.metrics.shapley import shapley

    if len(score) < 2 ** len(names) - 1:
        return None
    value = {frozenset(name for member, name in enumerate(names) if mask >> member & 1): one for mask, one in score.items()}
    shares = shapley({frozenset(): prior, **value}, names)
    return contributions_of(test.record_ids, judged.label, judged.score[0], shares, names)


def _classes(
    detectors: list[RecordDetector], train: Subset, records: dict[str, Subset], judged: dict[str, Judged], rule: RecordRule, device: Any
) -> ClassJudgement | None:
    """None of a detector that tells no classes."""
    from stages.fusion.classifying import tells, told
    from stages.metrics.record_classes import judge_classes

    return judge_classes(judged, told(detectors, train, records, device), rule) if tells(detectors[0]) else None


def _spans(detector: RecordDetector, test: Subset, device: Any) -> dict[str, list[Any]]:
    """When the first seed suspects the fault of each test record; clock_s is what time 1 is, None where the tokens are not on the clock of the arc."""
    from stages.fusion.occlusion import Span, spans

    entries = {name: store.about.get("entry", {}) for store in test.stores for name in store.widths}
    found = spans(detector, test, device)
    columns = {name: [getattr(one, name) for one in found] for name in Span._fields}
    return columns | {"clock_s": [entries[one.modality].get("clock_s") if entries[one.modality].get("onset") else None for one in found]}


def _experts(detector: RecordDetector, test: Subset, device: Any) -> dict[str, Any] | None:
    """How a detector with experts used them; None where it has none, or does not choose among them."""
    from stages.fusion.scoring import shows

    if not hasattr(detector, "experts_usage"):
        return None
    there = shows(test).nonzero()[0][:MOST_COUNTED].tolist()
    found = detector.experts_usage(test.take(there).to(device))
    return found if found["layers"] else None


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
