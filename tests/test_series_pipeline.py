"""Signals from a folder of CSV files to a ranked table and a page, by the verbs themselves; what a fit may know of the anomalies."""

import csv
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages import io, params
from stages.datasets import series_splits
from stages.datasets.segments import known_in, open_segments
from stages.metrics import series_result
from stages.serving import leaderboard as board
from stages.timeseries.detector import SeriesDetector
from tests.signals import signal_project

RUNS = ("pump-classical", "pump-clean", "pump-blind")
VERBS = [("prepare_series", "pump"), ("manifest_series", "pump"), *((verb, run) for verb in ("train_series", "evaluate_series") for run in RUNS)]


def work(folder: Path, *steps: tuple[str, ...]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in steps:
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return work(signal_project(tmp_path_factory.mktemp("signals")), *VERBS, ("bench_series", "pump"), ("report",), ("track",))


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): io.file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def result(folder: Path, model: str, row: str | None = None) -> dict:
    content = json.loads((folder / "metrics/pump" / f"{model}.json").read_text())
    return content["rows"][row] if row else content


def test_a_detector_that_sees_both_sensors_beats_chance_and_the_table_ranks_it_first(finished):
    pca, chance = (result(finished, "classical", row) for row in ("pca", "random"))
    assert pca["mean"]["vus_pr"]["low"] > chance["mean"]["vus_pr"]["high"]
    tables = board.leaderboard(params.load(finished / "params.yaml"), finished)
    rows = tables["pump, unsup-contaminated"]
    assert [row.model for row in rows] == ["pca", "random"] and rows[0].rank == 1 and rows[1].tied is False
    assert rows[0].latency_ms > 0 and rows[0].cost["parameters"] > 0
    text = board.render(tables, 100)
    assert "VUS-PR" in text and "ms/step" in text


def test_regimes_are_never_ranked_together_and_one_that_a_detector_cannot_learn_in_is_a_row_with_its_reason(finished):
    tables = board.leaderboard(params.load(finished / "params.yaml"), finished)
    assert set(tables) == {"pump, unsup-contaminated", "pump, unsup-clean", "pump, weak"}
    assert [row.model for row in tables["pump, unsup-clean"]] == ["clean"]
    assert "cannot learn in the regime weak" in tables["pump, weak"][0].refused


def test_what_each_regime_hands_to_a_fit(finished, monkeypatch):
    monkeypatch.chdir(finished)
    train = open_segments("pump", "old", "train")
    anomalous = sum(int(segment.label.sum()) for segment in train)
    assert anomalous == 30
    steps = {regime: sum(one.steps for one in known_in(regime, train)) for regime in ("unsup-contaminated", "unsup-clean", "synth-erase")}
    assert steps["unsup-contaminated"] == steps["synth-erase"] == steps["unsup-clean"] + anomalous
    for regime in steps:
        assert all(segment.label is None for segment in known_in(regime, train))
    assert [segment.label.sum() for segment in known_in("weak", train)] == [segment.label.sum() for segment in train]


def test_no_fit_sees_a_step_that_thresholds_come_from(finished, tmp_path, monkeypatch):
    """A spy in the place of PCA's fit, with so few steps needed that what is held out is halved."""
    folder, seen = shutil.copytree(finished, tmp_path / "project"), []
    real = SeriesDetector.fit
    monkeypatch.setattr(series_splits, "LEAST", 60)
    monkeypatch.setattr(SeriesDetector, "fit", lambda self, train, val, run: seen.append((run.category, train, val)) or real(self, train, val, run))
    work(folder, ("manifest_series", "pump"), ("train_series", "pump-clean"), ("evaluate_series", "pump-clean"))
    monkeypatch.chdir(folder)
    for category, train, val in seen:
        unseen = {segment.start + step for segment in open_segments("pump", category, "threshold") for step in range(segment.steps)}
        given = {segment.start + step for segment in (*train, *val) for step in range(segment.steps)}
        assert val and len(unseen) == 60 and not unseen & given and max(given) + 1 == min(unseen)
    assert {category for category, *_ in seen} == {"old", "new"}
    thresholds = json.loads((folder / "metrics/pump/clean/thresholds.json").read_text())
    scores = series_result.read_predictions(folder / "metrics/pump/clean", "threshold", 0)
    for category, found in scores.items():
        unseen = [segment.start + step for segment in open_segments("pump", category, "threshold") for step in range(segment.steps)]
        assert found["step"].tolist() == unseen and thresholds[category]["0.01"][0]["value"] == found["score"].max()


def test_training_on_clean_steps_learns_something_else(finished):
    of = {model: io.read_model(finished / "models/pump" / model / "old/seed0/model.safetensors") for model in ("classical/pca", "clean")}
    assert not np.allclose(*(one["spread"].numpy() for one in of.values()))


def test_the_mean_is_that_of_the_categories_and_every_metric_has_a_value_or_a_reason(finished):
    pca = result(finished, "classical", "pca")
    assert set(pca["categories"]) == {"old", "new"}
    for name, cell in pca["mean"].items():
        own = [cells[name] for cells in pca["categories"].values()]
        assert cell["value"] is not None or cell["reason"]
        if all(one["value"] is not None for one in own):
            assert cell["value"] == pytest.approx(np.mean([one["value"] for one in own]))
    assert pca["mean"]["vus_pr"]["buffer"] == 20


def test_pooled_rates_count_the_steps_of_all_categories_together(finished):
    """By hand, from predictions and thresholds, for the first of the seeds; PCA needs none, so both are the same."""
    folder, total = finished / "metrics/pump/classical/pca", np.zeros(4)
    thresholds = json.loads((folder / "thresholds.json").read_text())
    for category, seen in series_result.read_predictions(folder, "test", 0).items():
        alarm, truth = seen["score"] > thresholds[category]["0.01"][0]["value"], seen["label"] == 1
        total += [(alarm & truth).sum(), (~alarm & truth).sum(), (~alarm & ~truth).sum(), (alarm & ~truth).sum()]
    tp, fn, tn, fp = total
    expected = {"f1": 2 * tp / (2 * tp + fp + fn), "false_alarm_rate": fp / (fp + tn), "missing_alarm_rate": fn / (fn + tp)}
    assert result(finished, "classical", "pca")["pooled"] == pytest.approx(expected)


def test_predictions_are_the_steps_of_the_test_split_as_each_seed_sees_them(finished, monkeypatch):
    monkeypatch.chdir(finished)
    folder = finished / "metrics/pump/classical/random"
    first, second = (series_result.read_predictions(folder, "test", seed)["new"] for seed in (0, 1))
    test = open_segments("pump", "new", "test")
    assert first["label"].tolist() == np.concatenate([segment.label for segment in test]).tolist()
    assert first["step"].tolist() == [segment.start + step for segment in test for step in range(segment.steps)]
    assert (first["score"] != second["score"]).any()


def test_a_model_is_tied_with_itself_and_with_none_of_other_data(finished):
    pca, chance = (finished / "metrics/pump/classical" / row for row in ("pca", "random"))
    assert series_result.tied_with(pca, pca, "vus_pr") is True
    assert series_result.tied_with(pca, chance, "vus_pr") is False
    assert series_result.tied_with(pca, finished / "nowhere", "vus_pr") is None


def test_the_page_shows_both_tables_and_its_charts_have_marks(finished):
    text = (finished / "metrics/report/index.html").read_text()
    assert "pump, unsup-contaminated" in text and "Take pca" in text and 'data-chart="timeline:old"' in text and "PA-F1 (inflated)" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert {"quality", "timeline:old", "timeline:new", "histogram:old", "PR:old", "found:old"} <= set(data[0]["charts"])


def test_every_result_is_listed_for_the_tracker(finished):
    listed = json.loads((finished / "metrics/track/mirrored.json").read_text())
    assert {(one["dataset"], one["model"]) for one in listed} == {("pump", model) for model in ("random", "pca", "clean", "blind")}


def test_the_same_files_come_out_again(finished, tmp_path):
    again = work(signal_project(tmp_path / "again"), *VERBS)
    for folder in ("data", "models", "metrics/pump"):
        assert tree(again / folder) == tree(finished / folder), folder


def test_unlabelled_test_steps_are_a_row_with_the_reason(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "project")
    for path in (folder / "recordings").rglob("*.csv"):
        rows = list(csv.reader(path.open()))
        path.write_text("".join(",".join(row[:2]) + "\n" for row in rows))
    work(folder, ("prepare_series", "pump"), ("manifest_series", "pump"), ("train_series", "pump-classical"), ("evaluate_series", "pump-classical"))
    assert "no labels" in result(folder, "classical", "pca")["refused"]


def test_a_name_of_two_data_sets_and_a_missing_section_are_refused_in_words(finished, tmp_path):
    text = (finished / "params.yaml").read_text()
    twice = tmp_path / "params.yaml"
    twice.write_text(text.replace("datasets: {}", "datasets:\n  pump:\n    adapter: folder\n    source: here", 1))
    with pytest.raises(params.ParamsError, match="datasets and series.datasets both have pump"):
        params.load(twice)
    start = text.index("series:\n")
    twice.write_text(text[:start] + text[text.index("protocol:\n  seeds:", text.index("bootstrap_resamples", start)) :])
    with pytest.raises(params.ParamsError, match="has no section series"):
        assert params.load(twice).signals


def test_the_command_runs_the_verbs_of_signals_and_shows_their_table(finished, tmp_path, monkeypatch, capsys):
    from stages.serving import cli

    folder = shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(folder)
    (folder / "metrics/pump/clean.json").unlink()
    for arguments in (["evaluate", "pump-clean", "--json"], ["leaderboard", "--markdown"]):
        monkeypatch.setattr("sys.argv", ["assay", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    printed = capsys.readouterr().out
    assert '"pump-clean": 0' in printed and "**pump, unsup-clean**" in printed and "VUS-PR" in printed
    assert result(folder, "clean") == result(finished, "clean")


def test_a_folder_is_looked_at_before_it_is_used(finished):
    from stages.serving import signal_check

    found = signal_check.examine(finished / "recordings")
    assert [(one.recording, one.steps, one.variables, one.anomalous) for one in found] == [
        ("new/run", 1200, ("pressure", "flow"), 120),
        ("old/run", 1200, ("pressure", "flow"), 120),
    ]
    assert "new/run: 1200 steps of 2 variables, no times, 120 anomalous" in signal_check.render(found)
    text = signal_check.render([one._replace(anomalous=None, stretches=2, missing=3) for one in found])
    assert "no labels, 2 stretches, 3 values missing" in text and "but not judged" in text
