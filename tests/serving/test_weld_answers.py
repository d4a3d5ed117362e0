"""`assay weld explain`, `uncertainty` and `threshold`: what they say follows from scores and labels, and what cannot be said is an error with a way out."""

import json

import numpy as np
import pytest

from stages import io, params
from stages.datasets.record_sets import open_split
from stages.fusion import artefact
from stages.metrics import business
from stages.metrics.class_calibration import class_temperature
from stages.metrics.record_result import read_predictions
from stages.serving import weld_explain, weld_threshold, weld_uncertainty
from stages.serving.record_model import choose
from tests.class_project import RECORDS, judged

DEEP = """\
        image-only:
          detector: deep.cross_attention
          heads: 2
          layers: 1
          queries: 2
          ffn: 32
          features: 16
          encoding:
            width: 16
            heads: 2
            sensor_layers: 1
            sensor_ffn: 32
          learning:
            steps: 25
            learning_rate: 0.005
"""
FOREST = """\
        image-only:
          detector: classical.forest
          trees: 10
          modalities:
            - image
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    assert FOREST in RECORDS
    return judged(tmp_path_factory.mktemp("weld"), 120, records=RECORDS.replace(FOREST, DEEP))


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def model(name: str):
    return choose(params.load(), dataset="weld", model=name)


def test_gradients_add_up_to_the_score_and_the_file_holds_what_was_told(assay, here):
    code, out, err = assay("weld", "explain", "--worst", "2", "--model", "image-only")
    assert code == 0, err
    found = json.loads((here / "outputs/explain/weld/image-only.json").read_text())
    assert len(found["records"]) == 2 and found["by"] == "gradients"
    for row in found["records"]:
        assert sum(row["modalities"].values()) == pytest.approx(row["score"] - row["normal_score"], abs=5e-3 * max(1, abs(row["score"])))
        assert row["record_id"] in out and set(row["modalities"]).isdisjoint(row["missing"])
        assert {one["modality"] for one in row["spans"]} <= set(row["modalities"])
    assert "random order in brackets" in out and "written to outputs/explain/weld/image-only.json" in out


def test_the_worst_are_those_furthest_on_the_wrong_side_of_the_threshold(here):
    chosen = model("image-only")
    found = weld_explain.explain(chosen, None, 3, by="rollout")
    score = {row["record_id"]: (row["score"] - found["threshold"]) * (1 - 2 * row["label"]) for row in read_predictions(chosen.results, "test", chosen.seed)}
    assert [row["record_id"] for row in found["records"]] == sorted(score, key=lambda name: -score[name])[:3]
    for row in found["records"]:  # of a rollout the shares of all modalities
        assert sum(row["modalities"].values()) == pytest.approx(1, abs=1e-5) and row["gap"] is None


def test_a_named_record_is_explained_by_occlusion_where_the_score_has_no_gradient(assay, here):
    name = open_split("weld", "test").record_ids[0]
    code, _, err = assay("weld", "explain", name)
    assert code == 1 and "Forest has no gradient; use occlusion" in err
    code, out, err = assay("weld", "explain", name, "--by", "occlusion", "--json", "-o", "one.json")
    found = json.loads(out)
    assert code == 0 and [row["record_id"] for row in found["records"]] == [name] and json.loads((here / "one.json").read_text()) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "say which record"),
        (("r0-0001", "--worst", "2"), "and not both"),
        (("nobody",), "no record 'nobody' in this split"),
        (("--worst", "1", "--by", "guess"), "--by must be one of gradients, occlusion, rollout"),
        (("--worst", "1", "--split", "all"), "--split must be one of train, val, test"),
    ],
)
def test_what_cannot_be_explained_is_said(assay, here, asked, said):
    code, _, err = assay("weld", "explain", *asked)
    assert code == 1 and said in err


def test_figures_of_uncertainty_are_those_of_the_logits_that_evaluate_wrote(assay, here):
    code, out, err = assay("weld", "uncertainty", "--model", "image-only", "--passes", "4")
    assert code == 0, err
    found = json.loads((here / "outputs/uncertainty/weld/image-only/uncertainty.json").read_text())
    every = io.read_table(model("image-only").results / "class_predictions.parquet")
    rows, held_out = ([row for row in every if (row["split"], row["seed"]) == (split, 0)] for split in ("test", "val"))
    logits, val_logits = (np.array([[row[f"logit_{name}"] for name in found["classes"]] for row in part]) for part in (rows, held_out))
    place, val_place = (np.array([found["classes"].index(row["class"]) for row in part]) for part in (rows, held_out))
    assert found["temperature"] == pytest.approx(class_temperature(val_logits, val_place), abs=1e-3)  # of validation, not of test
    plain, warm, ways = found["ways"]["as it is"], found["ways"]["temperature"], found["ways"]
    assert plain["accuracy"] == pytest.approx((logits.argmax(1) == place).mean()) and warm["accuracy"] == plain["accuracy"]
    scaled = logits / found["temperature"]
    assert warm["nll"] == pytest.approx(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(place)), place]), abs=1e-5)
    assert list(ways) == ["as it is", "temperature", "vector scaling", "dropout, 4 passes", "ensemble of 2 seeds"] and found["seeds"] == [0, 1]
    assert plain["disagreement"] is None and ways["ensemble of 2 seeds"]["disagreement"] > 0
    assert all(row["least_aurc"] <= row["aurc"] <= 1 and 0 < row["coverage"] <= 1 <= row["set_size"] for row in ways.values())
    table = (here / "outputs/uncertainty/weld/image-only/records.csv").read_text().splitlines()
    assert len(table) == len(rows) + 1 and "ensemble of 2 seeds: disagreement" in table[0] and "coverage" in out


def test_the_ensemble_is_the_mean_of_the_seeds_and_what_has_no_dropout_says_so(here):
    chosen = model("cross-attention")  # a forest, under that name
    found = weld_uncertainty.measure(chosen, passes=2)
    assert "has no dropout" in found["refused"]["dropout, 2 passes"]
    test = open_split("weld", "test")
    each = [artefact.load(chosen.place.parent / f"seed{seed}").classify(test.take(range(test.samples))).logits.softmax(1).numpy() for seed in (0, 1)]
    likely = [row["ensemble of 2 seeds: probability"] for row in found["records"]]
    assert likely == pytest.approx(np.mean(each, axis=0).max(1), abs=1e-5)


def test_uncertainty_of_a_model_without_classes_is_refused(assay, here):
    code, _, err = assay("weld", "uncertainty", "--model", "knn")
    assert code == 1 and "knn tells no classes" in err


def test_a_threshold_keeps_its_rule_on_validation_and_counts_a_shift_at_the_plants_share(assay, here):
    code, out, err = assay("weld", "threshold", "--model", "mid-fusion", "--max-fnr", "0.1", "--per-shift", "500", "--prevalence", "0.02", "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = read_predictions(model("mid-fusion").results, "val", 0)
    bad = np.array([row["score"] > found["value"] for row in rows if row["label"] == 1])
    good = np.array([row["score"] > found["value"] for row in rows if row["label"] == 0])
    assert 1 - bad.mean() <= 0.1 and found["achieved"]["missed_rate"] == pytest.approx(1 - bad.mean())
    assert found["shift"]["false_alarms"] == pytest.approx(490 * good.mean()) and found["shift"]["missed"] == pytest.approx(10 * (1 - bad.mean()))
    code, out, _ = assay("weld", "threshold", "--model", "mid-fusion", "--cost-miss", "500", "--cost-alarm", "5", "--prevalence", "0.02")
    assert code == 0 and "least_cost" in out and "test, which nothing was chosen by" in out and "--threshold=" in out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "say one rule"),
        (("--max-fnr", "0.1", "--max-fpr", "0.1"), "say one rule"),
        (("--cost-miss", "5", "--prevalence", "0.1"), "are needed together"),
        (("--cost-miss", "5", "--cost-alarm", "1"), "say by --prevalence"),
        (("--max-fpr", "0.1", "--per-shift", "9"), "say by --prevalence"),
        (("--max-fpr", "1.5"), "--max-fpr must be a share in 0..1"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_said(assay, here, asked, said):
    code, _, err = assay("weld", "threshold", "--model", "mid-fusion", *asked)
    assert code == 1 and said in err


def test_validation_alone_chooses_and_the_rates_on_test_are_told(here):
    chosen = model("image-only")
    found = weld_threshold.choose_threshold(chosen, weld_threshold.Rule(max_fpr=0.2))
    val, test = (read_predictions(chosen.results, split, 0) for split in ("val", "test"))
    of_val, of_test = (business.at_most_false([row["score"] for row in part], [row["label"] for row in part], 0.2).value for part in (val, test))
    assert found["value"] == of_val != of_test and found["achieved"]["n_anomalous"] == sum(row["label"] for row in val)
    missed = np.mean([row["score"] <= found["value"] for row in test if row["label"] == 1])
    assert found["test"]["missed_rate"] == pytest.approx(missed) and found["shift"] is None
