"""Records from a generated station to judged detectors, by the verbs themselves; every figure again from the predictions."""

import csv
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from stages import io
from stages.datasets import record_sets
from stages.fusion import artefact
from stages.metrics import record_result, series_result
from stages.metrics.record_judgement import RECORD_METRICS
from tests.record_projects import record_project

NETWORK = {"width": 16, "latents": 4, "heads": 2, "blocks": 1, "hidden": 16, "experts": 2, "top_k": 1, "epochs": 3, "batch_size": 16, "learning_rate": 0.003}
ENCODERS = {
    "notes": {"kind": "sentences", "weights": "nowhere"},
    "sounds": {"kind": "log_mel", "window_s": 0.25, "hop_s": 0.25},
    "sensors": {"kind": "windows"},
}
MODALITIES = {"text": "notes", "audio": "sounds", "series": "sensors"}
CLASSICAL, PERCEIVER = "stages/fusion/classical", "stages/fusion/perceiver"
SECTIONS = {
    "encoders": ENCODERS,
    "extracts": {
        f"station-{name}": {"dataset": "station", "modality": name, "encoder": one, "code": f"stages/encoders/media/{ENCODERS[one]['kind']}.py"}
        for name, one in MODALITIES.items()
    },
    "models": {
        "plain": {
            "rows": {
                "mean-logit": {"detector": "classical.mean_logit"},
                "knn": {"detector": "classical.knn"},
                "unimodal-text": {"detector": "classical.unimodal", "modality": "text"},
                "sensors-only": {"detector": "classical.knn", "modalities": ["series"]},
            }
        },
        "drawn": {"detector": "classical.random_score"},
        "moe": {"detector": "perceiver_moe", "label": "tiny", **NETWORK},
    },
    "runs": {
        "station-plain": {"dataset": "station", "model": "plain", "code": CLASSICAL, "maths": CLASSICAL},
        "station-drawn": {"dataset": "station", "model": "drawn", "code": CLASSICAL, "maths": CLASSICAL},
        "station-moe": {"dataset": "station", "model": "moe", "code": f"{PERCEIVER}_moe.py", "maths": PERCEIVER},
    },
}
PREPARED = [("prepare_records", "station"), ("extract_records", "station"), ("manifest_records", "station")]
JUDGED = [(verb, run) for verb in ("train_records", "evaluate_records") for run in SECTIONS["runs"]]


def work(folder: Path, *steps: tuple[str, ...], code: int = 0) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in steps:
            assert (importlib.import_module(f"stages.{verb}").main(*arguments) or 0) == code, verb
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = record_project(tmp_path_factory.mktemp("records"), **SECTIONS)
    return work(folder, *PREPARED, *JUDGED, ("bench_records", "station"), ("track",))


def result(folder: Path, model: str, row: str | None = None) -> dict:
    content = json.loads((folder / "metrics/station" / f"{model}.json").read_text())
    return content["rows"][row] if row else content


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): io.file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def predictions(folder: Path, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and score."""
    rows = record_result.read_predictions(folder, split, seed)
    return np.array([row["label"] for row in rows]), np.array([row["score"] for row in rows])


@pytest.mark.parametrize(("model", "row", "seeds"), [("moe", None, (0, 1)), ("plain", "mean-logit", (0,)), ("drawn", None, (0, 1))])
def test_figures_are_those_of_the_predictions_at_the_stored_thresholds(finished, model, row, seeds):
    found, folder = result(finished, model, row)["categories"]["all"], finished / "metrics/station" / model / (row or "")
    thresholds = json.loads((folder / "thresholds.json").read_text())["all"]
    assert thresholds["seeds"] == list(seeds)
    each = [predictions(folder, "test", seed) for seed in seeds]
    assert found["roc_auc"]["value"] == pytest.approx(np.mean([roc_auc_score(label, score) for label, score in each]))
    cuts = [at["value"] for at in thresholds["thresholds"]["conformal"]]
    for seed, cut in zip(seeds, cuts, strict=True):
        label, score = predictions(folder, "val", seed)
        assert (score[label == 0] > cut).mean() <= 0.1 and cut in score[label == 0]
    expected = np.mean([f1_score(label, score > cut, zero_division=0) for (label, score), cut in zip(each, cuts, strict=True)])
    assert found["f1"]["value"] == pytest.approx(expected)


def test_every_metric_has_a_value_or_a_reason_and_the_mean_is_that_of_the_one_category(finished):
    for one in (result(finished, "moe"), result(finished, "plain", "knn")):
        assert tuple(one["mean"]) == RECORD_METRICS and one["mean"] == one["categories"]["all"]
        for name, cell in one["mean"].items():
            assert cell["low"] <= cell["value"] <= cell["high"] if cell["value"] is not None else cell["reason"], name
    assert result(finished, "plain", "knn")["mean"]["ece"]["value"] is None and not result(finished, "plain", "knn")["supervised"]
    assert result(finished, "moe")["mean"]["ece"]["value"] > 0 and result(finished, "moe")["label"] == "tiny"


def test_a_modality_whose_encoder_is_not_here_is_done_without_and_a_model_of_it_is_a_row_with_the_reason(finished):
    assert result(finished, "moe")["modalities"] == ["audio", "series"]
    assert "no modality 'text'" in result(finished, "plain", "unimodal-text")["refused"]
    refused = record_sets.refused_stores("station", finished)
    assert list(refused) == ["text"] and "nowhere" in refused["text"]
    bench = json.loads((finished / "metrics/bench/station.json").read_text())["models"]
    assert "refused" in bench["unimodal-text"] and bench["moe"]["latency_ms_p50"] > 0 and bench["moe"]["parameters"] > 0


def test_splits_are_those_of_the_manifest_and_hold_no_record_that_nothing_is_known_of(finished):
    rows = {split: record_sets.judged_rows("station", split, finished) for split in record_sets.SPLITS}
    groups = [{row["group"] for row in own} for own in rows.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    stored = [set(store.record_ids) for store in record_sets.open_stores("station", finished)]
    for split, own in rows.items():
        assert {row["record_id"] for row in own} <= set.union(*stored)
        opened = record_sets.open_split("station", split, finished)
        assert opened.record_ids == [row["record_id"] for row in own] and bool(opened.whole().present.any(1).all())


def test_all_modalities_together_are_the_last_subset_and_half_are_the_mean_of_the_two(finished):
    folder = finished / "metrics/station/moe"
    rows = {row["modalities"]: float(row["roc_auc"]) for row in table(folder / "subsets.csv")}
    found = result(finished, "moe")["mean"]
    assert list(rows) == ["audio", "series", "audio+series"] and rows["audio+series"] == pytest.approx(found["roc_auc"]["value"])
    single = (rows["audio"] + rows["series"]) / 2
    assert [float(row["roc_auc"]) for row in table(folder / "missing_curve.csv")] == pytest.approx([rows["audio+series"], single])
    assert found["missing_auc"]["value"] == pytest.approx((rows["audio+series"] + single) / 2)


def test_contributions_add_up_to_the_score_of_the_first_seed_less_the_mean_validation_score(finished):
    for folder in (finished / "metrics/station/moe", finished / "metrics/station/plain/knn"):
        rows = io.read_table(folder / "contributions.parquet")
        label, score = predictions(folder, "test", 0)
        assert [row["label"] for row in rows] == label.tolist() and np.allclose([row["score"] for row in rows], score)
        believed = predictions(folder, "val", 0)[1].mean()
        assert np.allclose([row["audio"] + row["series"] for row in rows], score - believed, atol=1e-6)
    faults = table(finished / "metrics/station/moe/faults.csv")
    assert sum(int(row["records"]) for row in faults) == int(predictions(finished / "metrics/station/moe", "test", 0)[0].sum())


def test_a_detector_that_draws_nothing_is_fitted_once_whatever_seeds_are_asked_for(finished):
    assert [path.name for path in (finished / "models/station/plain/knn").iterdir()] == ["seed0"]
    assert result(finished, "plain", "knn")["seeds"] == [0] and result(finished, "moe")["seeds"] == [0, 1]


def test_experts_are_told_of_where_there_are_any(finished):
    assert json.loads((finished / "metrics/station/moe/experts.json").read_text())["experts"] == 2
    assert not (finished / "metrics/station/plain/knn/experts.json").exists()


def test_probabilities_are_the_logits_over_the_temperature_and_raw_scores_have_none(finished):
    folder = finished / "metrics/station/moe"
    temperatures = json.loads((folder / "thresholds.json").read_text())["all"]["temperatures"]
    row = record_result.read_predictions(folder, "test", 1)[3]
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["score"] / temperatures[1])))
    assert json.loads((folder / "calibration.json").read_text())["temperature"] == temperatures[0]
    assert record_result.read_predictions(finished / "metrics/station/plain/knn", "test", 0)[0]["probability"] is None


def test_a_model_is_tied_with_itself_by_the_draws_that_signals_are_compared_by(finished):
    one = finished / "metrics/station/moe"
    assert series_result.tied_with(one, one, "roc_auc") is True


def test_a_row_of_one_modality_is_judged_on_all_records_and_says_the_same_of_those_that_lack_it(finished):
    samples = {row["record_id"]: row for row in io.read_table(finished / "data/station/samples.parquet")}
    rows = io.read_table(finished / "metrics/station/plain/sensors-only/predictions.parquet")
    every = io.read_table(finished / "metrics/station/plain/knn/predictions.parquet")
    assert [row["record_id"] for row in rows] == [row["record_id"] for row in every]
    blank = {row["score"] for row in rows if not samples[row["record_id"]]["series_path"]}
    seen = [row["score"] for row in rows if samples[row["record_id"]]["series_path"] and row["split"] == "val"]
    assert len(blank) == 1 and blank.pop() == pytest.approx(np.mean(seen)) and len(set(seen)) > 5
    config = json.loads((finished / "models/station/plain/sensors-only/seed0/config.json").read_text())
    assert list(config["modalities"]) == config["shown"] == ["series"]
    assert result(finished, "plain", "sensors-only")["modalities"] == ["series"]


def test_every_result_is_listed_for_the_tracker_with_its_history(finished, monkeypatch):
    from stages import params, track

    listed = json.loads((finished / "metrics/track/mirrored.json").read_text())
    names = ("mean-logit", "knn", "unimodal-text", "sensors-only", "drawn", "moe")
    assert {(one["dataset"], one["model"]) for one in listed} == {("station", name) for name in names}
    monkeypatch.chdir(finished)
    settings = params.load()
    (one,) = track.results_of(settings, settings.record_task.runs["station-moe"])
    assert one.tags["modalities"] == "audio+series" and one.metrics["mean.roc_auc"] == result(finished, "moe")["mean"]["roc_auc"]["value"]
    assert "history/seed1/network/val_auroc" in {point.name for point in one.history}
    assert one.params["encoders.series.kind"] == "windows"


def test_the_same_files_come_out_again_and_a_fit_that_was_cut_off_ends_as_one_that_was_not(finished, tmp_path, monkeypatch):
    again = shutil.copytree(finished, tmp_path / "project")
    shutil.rmtree(again / "models")
    shutil.rmtree(again / "metrics")

    def killed(*_):
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "save", killed)
        work(again, ("train_records", "station-moe"), code=2)
    states = list((again / ".assay/resume/station-moe").rglob("network.safetensors"))
    assert len(states) == 2, "one a seed"
    work(again, *JUDGED)
    assert not (again / ".assay/resume/station-moe").exists()
    for folder in ("models", "metrics/station"):
        assert tree(again / folder) == tree(finished / folder), folder


def test_unlabelled_records_are_refused_where_one_learns_and_left_out_where_one_judges(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "project")
    path = folder / "data/station/manifest.json"
    content = io.read_json(path)
    tested = [row for row in content["samples"] if row["split"] == "test"]
    tested[0]["label"] = -1
    io.write_json(path, content)
    work(folder, ("evaluate_records", "station-drawn"))
    assert result(folder, "drawn")["records"]["test"] == result(finished, "drawn")["records"]["test"] - 1
    for row in tested:
        row["label"] = -1
    next(row for row in content["samples"] if row["split"] == "train")["label"] = -1
    io.write_json(path, content)
    work(folder, ("evaluate_records", "station-drawn"), ("train_records", "station-moe"))
    assert "no test record has a label" in result(folder, "drawn")["refused"]
    assert "1 records to learn from have no label" in artefact.refusal(folder / "models/station/moe/seed0")


def test_without_any_store_the_stage_that_makes_it_is_named(finished, tmp_path):
    folder = shutil.copytree(finished / "data", tmp_path / "data").parent
    with pytest.raises(FileNotFoundError, match="Run extract_records"):
        record_sets.open_split("station", "test", folder)
