"""Ask several detectors of one data set at once: one more row of the leaderboard, and who errs with whom.

Reads metrics/<dataset>/<model>/ of every detector (predictions, thresholds), writes metrics/ensemble/<dataset>.json (small, in git) and
metrics/ensemble/<dataset>/ (tables, predictions, thresholds). Members are chosen on validation images; trivial rows, groups and transductive models take
no part.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages import errors, io
from stages.datasets.samples import manifest_samples
from stages.metrics.ensemble import Held, calibrated, choose, errors_together
from stages.metrics.inputs import Undefined
from stages.metrics.judgement import Rule, Scored, exchangeable, judge_category
from stages.metrics.result import Judged, predictions_of, result_folder, result_of, write_tables
from stages.params import ENSEMBLE, ModelGroup, Params, load

Scores = dict[str, dict[str, float]]  # split -> sample id -> score


def main(dataset: str) -> int:
    params = load()
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}  # category -> split -> samples
    for sample in manifest_samples(dataset):
        if sample["split"] == "val" or sample["split"].startswith("test"):
            samples.setdefault(sample["category"], {"val": [], "test": []}).setdefault(sample["split"], []).append(sample)
    about = {"dataset": dataset, "model": ENSEMBLE}
    try:
        rows = _detectors(params, dataset)
        scores = {model: _calibrated(own, samples) for model, own in rows.items()}
        val = {
            model: {
                category: Held(np.array(list(of["val"].values())), np.array([sample["label"] for sample in samples[category]["val"]]))
                for category, of in own.items()
            }
            for model, own in scores.items()
        }
        choice = choose(val)
    except Undefined as reason:
        io.write_json(Path("metrics", ENSEMBLE, f"{dataset}.json"), about | {"refused": str(reason)})
        io.write_json(Path("metrics", ENSEMBLE, dataset, "refused.json"), {"reason": str(reason)})  # DVC asks for every out
        print(f"{dataset}: no ensemble. {reason}")
        return errors.OK
    judged = {category: _judge(params, category, splits, [scores[name] for name in choice.members]) for category, splits in samples.items()}
    result = result_of(
        about | {"members": choice.members, "chosen_by": choice.by, "seeds": params.protocol.seeds[:1]},
        {key: one.judgement for key, one in judged.items()},
        {},
    )
    result["errors_together"] = errors_together(_wrong(dataset, rows, samples))
    write_tables(Path("metrics", ENSEMBLE, dataset), result, judged)
    io.write_json(Path("metrics", ENSEMBLE, f"{dataset}.json"), result)
    print(f"{dataset}: {', '.join(choice.members)}, chosen by {choice.by}: mean image AUROC {result['mean']['image_auroc']['value']:.3f}")
    return errors.OK


def _detectors(params: Params, dataset: str) -> dict[str, list[dict[str, Any]]]:
    """The predictions of every detector that has a result for each category, of its run's first seed, whose thresholds and held-out scores there are."""
    found = {}
    for run in params.runs.values():
        if run.dataset == dataset and not isinstance(params.entry("models", run.model), ModelGroup):
            result = io.read_json(Path("metrics", dataset, f"{run.model}.json"))
            if not {"refused", "refused_categories", "transductive"} & result.keys():
                table = io.read_table(result_folder(dataset, run.model, run.model) / "predictions.parquet")
                found[run.model] = [row for row in table if row["seed"] == params.seeds(run)[0]]
    return found


def _calibrated(rows: list[dict[str, Any]], samples: Mapping[str, Any]) -> dict[str, Scores]:
    """By category and split, the calibrated scores in the order of `samples`. rows: the predictions of one detector."""
    of: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        of.setdefault((row["category"], row["split"]), {})[row["sample_id"]] = row["image_score"]
    found: dict[str, Scores] = {}
    for category, splits in samples.items():
        normal = [of[category, "val"][sample["sample_id"]] for sample in splits["val"] if sample["label"] == 0]
        good, _ = exchangeable(np.array(list(of.get((category, "train"), {}).values())), np.array(normal))
        found[category] = {}
        for split, own in splits.items():
            values = calibrated([of[category, split][sample["sample_id"]] for sample in own], good)
            found[category][split] = dict(zip((sample["sample_id"] for sample in own), values.tolist(), strict=True))
    return found


def _judge(params: Params, category: str, splits: dict[str, list[dict[str, Any]]], members: list[dict[str, Scores]]) -> Judged:
    """The mean of the members' scores, judged as any model's."""
    protocol = params.protocol
    scored = {}
    for split, samples in splits.items():
        ids = [sample["sample_id"] for sample in samples]
        score = np.mean([[member[category][split][one] for one in ids] for member in members], axis=0).astype(np.float32)
        label, nowhere = np.array([sample["label"] for sample in samples]), np.zeros((len(ids), 1, 1), dtype=bool)
        scored[split] = [Scored(ids, label, score, None, nowhere)]  # without maps no mask is looked at
    groups = {split: [sample["group"] for sample in samples] for split, samples in splits.items()}
    masked = {split: np.ones(len(samples), dtype=bool) for split, samples in splits.items()}
    rule = Rule(protocol.fpr_limits, protocol.target_false_alarm_rate, protocol.bootstrap_resamples, protocol.pixel_bins_above)
    judgement = judge_category(scored, groups, masked, np.empty(0, dtype=np.float32), rule)
    return Judged(judgement, predictions_of(protocol.seeds[:1], splits, scored, []), [])


def _wrong(dataset: str, predictions: Mapping[str, list[dict[str, Any]]], samples: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By detector, which test images it judges wrong at its own default threshold; a category without a threshold for one is left out for all."""
    limits = {model: io.read_json(result_folder(dataset, model, model) / "thresholds.json") for model in predictions}
    default = {
        model: {category: one["thresholds"][one["default"]]["value"] for category, one in of.items()} for model, of in limits.items()
    }
    judged = [category for category in samples if all(default[model][category] is not None for model in predictions)]
    wrong = {}
    for model, rows in predictions.items():
        own = {row["sample_id"]: row for row in rows if row["split"] == "test"}
        ordered = [own[sample["sample_id"]] for category in judged for sample in samples[category]["test"]]
        wrong[model] = np.array(
            [(row["image_score"] > default[model][row["category"]]) != (row["label"] == 1) for row in ordered], dtype=bool
        )
    return wrong


if __name__ == "__main__":
    sys.exit(errors.guarded(lambda: main(sys.argv[1])))
