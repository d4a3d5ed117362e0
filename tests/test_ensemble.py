"""The verb `ensemble` on made-up predictions: what it writes is the mean of its members, and nothing takes it for a model."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import ensemble, io, params
from stages.errors import UserError
from stages.metrics.ensemble import calibrated
from stages.metrics.ranking import auroc
from stages.serving import reference
from stages.serving.leaderboard import leaderboard
from stages.serving.verdict import recommended
from tests.projects import tiny_project

CATEGORIES = ("cup", "lid")
COUNTS = {("train", 0): 20, ("val", 0): 12, ("val", 1): 6, ("test", 0): 40, ("test", 1): 40}
UNITS = {"patchcore": 1.0, "padim": 1000.0, "stfpm": 0.01}  # scales of scores have nothing in common


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Three detectors that find every defect dimly, each with noise of its own, as evaluate would have written them."""
    folder = tiny_project(tmp_path / "project")
    text = (folder / "params.yaml").read_text()
    run = text[text.index("  tiny-padim:\n") : text.index("  tiny-trivial:\n")].replace("padim", "stfpm").replace("density", "distillation")
    (folder / "params.yaml").write_text(text.replace("  tiny-trivial:\n", f"{run}  tiny-trivial:\n"))
    monkeypatch.chdir(folder)
    samples = [
        {"sample_id": name, "category": category, "split": split, "label": label, "group": name, "mask": False}
        for category in CATEGORIES
        for (split, label), count in COUNTS.items()
        for name in (f"{category}/{split}{label}{number}" for number in range(count))
    ]
    io.write_json(Path("data/tiny/manifest.json"), {"dataset": "tiny", "samples": samples})
    rng = np.random.default_rng(0)
    for model, unit in UNITS.items():
        rows = [
            {**sample, "seed": seed, "image_score": unit * float(1.3 * sample["label"] + rng.normal())}
            for seed in (0, 1)
            for sample in samples
            if sample["split"] != "train" or seed == 0
        ]
        write(model, rows, unit)
    return folder


def write(model, rows, unit):
    folder = Path("metrics/tiny", model)
    io.write_table(
        folder / "predictions.parquet",
        {key: [row[key] for row in rows] for key in ("sample_id", "category", "split", "seed", "label", "image_score")},
    )
    fitted = {"default": "conformal", "thresholds": {"conformal": {"method": "conformal", "value": unit * 1.0}}}
    io.write_json(folder / "thresholds.json", dict.fromkeys(CATEGORIES, fitted))
    auroc_cell = {"image_auroc": {"value": 0.8, "low": 0.7, "high": 0.9}}
    io.write_json(
        Path(f"metrics/tiny/{model}.json"),
        {"dataset": "tiny", "model": model, "categories": dict.fromkeys(CATEGORIES, auroc_cell), "mean": auroc_cell},
    )


def of(model, category, split):
    rows = io.read_table(Path("metrics/tiny", model, "predictions.parquet"))
    return [row for row in rows if (row["category"], row["split"], row["seed"]) == (category, split, 0)]


def test_the_row_is_the_mean_of_calibrated_scores_and_better_than_its_members(project):
    assert ensemble.main("tiny") == 0
    result = json.loads(Path("metrics/ensemble/tiny.json").read_text())
    assert result["members"] == list(UNITS) and set(result["categories"]) == set(CATEGORIES)
    for category in CATEGORIES:
        mean = np.zeros(80)
        single = []
        for model in UNITS:
            test, label = of(model, category, "test"), np.array([row["label"] for row in of(model, category, "test")])
            good = [row["image_score"] for row in of(model, category, "train") + of(model, category, "val") if row["label"] == 0]
            mean += calibrated([row["image_score"] for row in test], good) / 3
            single.append(auroc([row["image_score"] for row in test], label))
        cell = result["categories"][category]["image_auroc"]
        assert cell["value"] == pytest.approx(auroc(mean.astype(np.float32), label)) and cell["low"] < cell["value"] < cell["high"]
        assert cell["value"] > max(single)
        assert "no anomaly map" in result["categories"][category]["pixel_auroc"]["reason"]
    predictions = io.read_table(Path("metrics/ensemble/tiny/predictions.parquet"))
    assert len(predictions) == 2 * (18 + 80) and {row["seed"] for row in predictions} == {0}


def test_test_images_choose_and_scale_nothing(project):
    """Whatever the scores of the test images are, members and scale are the same."""
    ensemble.main("tiny")
    before = json.loads(Path("metrics/ensemble/tiny.json").read_text())
    first = io.read_table(Path("metrics/ensemble/tiny/predictions.parquet"))
    for model, unit in UNITS.items():
        rows = io.read_table(Path("metrics/tiny", model, "predictions.parquet"))
        write(
            model,
            [
                row | {"image_score": -row["image_score"]} if row["split"] == "test" and row["sample_id"].endswith("9") else row
                for row in rows
            ],
            unit,
        )
    ensemble.main("tiny")
    after = json.loads(Path("metrics/ensemble/tiny.json").read_text())
    assert (before["members"], before["chosen_by"]) == (after["members"], after["chosen_by"])
    second = io.read_table(Path("metrics/ensemble/tiny/predictions.parquet"))
    untouched = [
        (one, other) for one, other in zip(first, second, strict=True) if not (one["split"] == "test" and one["sample_id"].endswith("9"))
    ]
    assert all(one == other for one, other in untouched) and first != second


def test_the_first_seed_of_a_run_speaks_whatever_its_number(project):
    """Out-of-fold scores and thresholds are those of the first seed that params.yaml names, which need not be the smallest."""
    ensemble.main("tiny")
    before = json.loads(Path("metrics/ensemble/tiny.json").read_text())
    text = Path("params.yaml").read_text()
    assert "  seeds:\n    - 0\n    - 1\n" in text
    Path("params.yaml").write_text(text.replace("  seeds:\n    - 0\n    - 1\n", "  seeds:\n    - 7\n    - 1\n"))
    for model, unit in UNITS.items():
        rows = io.read_table(Path("metrics/tiny", model, "predictions.parquet"))
        write(model, [row | {"seed": 7 if row["seed"] == 0 else 1} for row in rows], unit)
    ensemble.main("tiny")
    after = json.loads(Path("metrics/ensemble/tiny.json").read_text())
    assert (before.pop("seeds"), after.pop("seeds")) == ([0], [7]) and before == after


def test_common_errors_are_counted_at_each_models_own_threshold(project):
    ensemble.main("tiny")
    pairs = json.loads(Path("metrics/ensemble/tiny.json").read_text())["errors_together"]
    assert len(pairs) == 3
    wrong = {}
    for model, unit in UNITS.items():
        rows = [row for category in CATEGORIES for row in of(model, category, "test")]
        wrong[model] = np.array([(row["image_score"] > unit) != (row["label"] == 1) for row in rows])
    for pair in pairs:
        one, other = (wrong[model] for model in pair["models"])
        assert pair["both"] == (one & other).sum() and pair["by_chance"] == pytest.approx(one.sum() * other.sum() / 160, abs=0.01)


def test_it_is_a_row_of_the_leaderboard_and_never_the_model_to_take(project):
    ensemble.main("tiny")
    rows = leaderboard(params.load())["tiny"]
    assert rows[0].model == "ensemble" and rows[0].label == "mean of 3 models" and rows[0].rank == 1 and not rows[0].candidate
    assert all(row.tied is not None for row in rows) and any(row.candidate for row in rows[1:])
    assert recommended(rows).model in UNITS
    with pytest.raises(UserError, match="no model 'ensemble'"):
        reference.choose(params.load(), category="cup", model="ensemble")


def test_fewer_than_three_detectors_are_a_reason_and_no_row(project):
    text = Path("params.yaml").read_text()
    start, end = text.index("  tiny-stfpm:\n"), text.index("  tiny-trivial:\n")
    Path("params.yaml").write_text(text[:start] + text[end:])
    assert ensemble.main("tiny") == 0
    assert "at least 3 detectors, here are 2" in json.loads(Path("metrics/ensemble/tiny.json").read_text())["refused"]
    assert "ensemble" not in [row.model for row in leaderboard(params.load())["tiny"]] and Path("metrics/ensemble/tiny/refused.json").is_file()


def test_a_detector_that_lacks_a_category_takes_no_part(project):
    path = Path("metrics/tiny/padim.json")
    io.write_json(path, io.read_json(path) | {"refused_categories": {"lid": "too few images"}})
    ensemble.main("tiny")
    assert "here are 2" in io.read_json(Path("metrics/ensemble/tiny.json"))["refused"]
