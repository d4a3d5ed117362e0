"""A data set with kinds of fault in the report and in predict: figures again from the predictions, tables as files, sentences that follow from the numbers."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from stages import io, params, report
from stages.datasets.record_files import write_record
from stages.metrics.bootstrap import Interval
from stages.metrics.record_classes import CLASS_METRICS
from stages.metrics.record_judgement import RECORD_METRICS
from stages.serving import class_summary, class_verdict, record_predict, record_summary, record_tables
from stages.serving.leaderboard import leaderboard, results
from stages.serving.record_model import choose, threshold_of
from stages.serving.verdict import recommended
from tests.class_project import judged
from tests.fusion.synthetic import samples


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return judged(tmp_path_factory.mktemp("weld"), 120)


@pytest.fixture
def here(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def telling(project, row: str) -> dict:
    return json.loads((project / "metrics/weld/telling.json").read_text())["rows"][row]


def told(project, row: str, split: str = "test") -> list[dict]:
    rows = io.read_table(project / "metrics/weld/telling" / row / "class_predictions.parquet")
    return [one for one in rows if one["split"] == split]


def compared() -> tuple[list, dict]:
    settings = params.load()
    found, rows = results(settings), leaderboard(settings)["weld"]
    return rows, {found[row.folder]["model"]: found[row.folder] for row in rows}


def test_figures_of_classes_are_those_of_what_was_told_averaged_over_seeds(project):
    for row in ("cross-attention", "image-only"):
        mean = telling(project, row)["mean"]
        assert tuple(mean) == (*RECORD_METRICS, *CLASS_METRICS)
        for metric, column, measure in (
            ("accuracy", "told", accuracy_score), ("knn_accuracy", "neighbours", accuracy_score),
            ("macro_f1", "told", lambda true, said: f1_score(true, said, average="macro", labels=sorted(set(true)))),
        ):  # fmt: skip
            each = []
            for seed in (0, 1):
                own = [one for one in told(project, row) if one["seed"] == seed]
                each.append(measure([one["class"] for one in own], [one[column] for one in own]))
            assert mean[metric]["value"] == pytest.approx(np.mean(each)), (row, metric)
            assert mean[metric]["low"] <= mean[metric]["value"] <= mean[metric]["high"]


def test_a_model_that_tells_no_classes_has_the_keys_it_always_had(project):
    found = json.loads((project / "metrics/weld/plain.json").read_text())["rows"]["knn"]
    assert tuple(found["mean"]) == RECORD_METRICS and not {"classes", "guess"} & set(found)
    assert not list((project / "metrics/weld/plain/knn").glob("class*")) and "macro_f1" not in (project / "metrics/weld/plain/knn/metrics.csv").read_text()


def test_the_matrix_adds_up_to_the_records_and_its_rows_are_what_they_are(project):
    with (project / "metrics/weld/telling/cross-attention/confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["class"] for row in rows]
    own = [one for one in told(project, "cross-attention") if one["seed"] == 0]
    for row in rows:
        assert sum(int(row[name]) for name in names) == sum(one["class"] == row["class"] for one in own)
        assert int(row["normal"]) == sum(one["class"] == row["class"] and one["told"] == "normal" for one in own)


def test_a_record_that_shows_the_model_nothing_is_told_by_what_is_frequent(project):
    lacking = {one.record_id for one in samples(0, 120) if "image" not in one.modalities}
    rows = [one for one in told(project, "image-only") if one["record_id"] in lacking]
    assert rows and {one["told"] for one in rows} == {one["neighbours"] for one in rows} == {"normal"}


def test_the_difference_is_that_of_the_same_records(here):
    rows, _ = compared()
    seen = {row.model: record_tables._seen(row.folder) for row in rows}
    found = record_tables.difference("cross-attention", "mid-fusion", seen)
    areas = [np.mean([roc_auc_score(one.label, score) for score in one.score]) for one in (seen["cross-attention"], seen["mid-fusion"])]
    assert found.interval.value == pytest.approx(areas[0] - areas[1]) and found.interval.low < found.interval.value < found.interval.high
    assert record_tables.difference("cross-attention", "cross-attention", seen).interval.value == 0
    fewer = seen["mid-fusion"]._replace(record_id=[f"other {name}" for name in seen["mid-fusion"].record_id[:5]] + seen["mid-fusion"].record_id[5:])
    assert record_tables.difference("cross-attention", "mid-fusion", {**seen, "mid-fusion": fewer}).records == found.records - 5
    assert record_tables.difference("cross-attention", "nobody", seen) is None


def test_a_setting_that_tells_the_fault_is_said_to_and_no_model_is_above_it(here):
    found = record_tables.compared(*compared())
    said = next(text for text in found.said if "setpoint-only" in text)
    assert said.startswith("The setting tells the fault") and "no model is above it" in said
    main = found.tables["main"]
    assert main.header[-2] == "over setpoint-only"
    beside = {row[1]: row[-2] for row in main.rows}
    assert beside["setpoint-only (control)"] == "" and beside["mid-fusion"].startswith("-") and beside["knn (unsupervised)"].startswith("-")


def test_a_control_that_does_best_is_not_recommended_and_takes_nothing_from_the_model_that_is(here):
    rows, _ = compared()
    assert rows[0].model == "setpoint-only" and not rows[0].candidate
    assert recommended(rows).model == "cross-attention" and recommended(rows).tied is True


def test_a_setting_that_tells_nothing_is_said_to():
    row = type("Row", (), {"model": "setpoint-only", "metrics": {"roc_auc": {"value": 0.55, "low": 0.4, "high": 0.7}}, "kind": "control"})
    assert record_tables._setting("setpoint-only", [row], {}).startswith("The setting tells little")
    sure = record_tables.Interval(0.2, 0.1, 0.3)
    row.metrics = {"roc_auc": {"value": 0.7, "low": 0.6, "high": 0.8}}
    models = [type("Row", (), {"model": name, "metrics": {}, "kind": "supervised"}) for name in ("a", "b")]
    over = {"a": record_tables.Difference("a", "s", sure, 9), "b": record_tables.Difference("b", "s", sure._replace(low=-0.1), 9)}
    assert "above it is a alone" in record_tables._setting("setpoint-only", [row, *models], over)
    assert "all models are above it" in record_tables._setting("setpoint-only", [row, *models], {"a": over["a"], "b": over["a"]})
    assert "no model stands beside it" in record_tables._setting("setpoint-only", [row], {})


def test_the_best_of_one_modality_is_said_to_be_chosen_where_it_is_judged(here):
    said = next(text for text in record_tables.compared(*compared()).said if text.startswith("ROC AUC of cross-attention"))
    assert "over mid-fusion, which" in said and "over image-only (the best of one modality on these very records, which favours it), which" in said


def test_tables_lie_beside_the_page_and_stand_on_it(here):
    report.main()
    folder, text = here / "metrics/report/tables", (here / "metrics/report/index.html").read_text()
    assert {path.name for path in folder.iterdir()} == {f"weld-{name}.{end}" for name in ("main", "missing", "faults", "classes") for end in ("csv", "md")}
    with (folder / "weld-missing.csv").open() as file:
        missing = {row["modalities"]: row for row in csv.DictReader(file)}
    assert len(missing) == 7 and missing["text"]["image-only"] == "" and float(missing["image"]["image-only"]) > 0.5
    with (folder / "weld-main.csv").open() as file:
        main = {row["model"]: row for row in csv.DictReader(file)}
    assert float(main["cross-attention"]["macro_f1"]) == telling(here, "cross-attention")["mean"]["macro_f1"]["value"]
    assert float(main["image-only"]["over_setting_high"]) < 0 and main["setpoint-only"]["over_setting"] == ""
    for chart in ("confusion", "by_class"):
        assert f'data-chart="{chart}"' in text
    assert "The setting tells the fault" in text and "Each class, F1" in text and "Verdict: " in text and len(text) < 4_000_000


def test_the_tables_of_a_study_stand_on_the_page_as_it_wrote_them(here):
    folder = here / "metrics/weld/study"
    head = "|  | row | P2 AUROC |\n| --- | --- | ---: |\n"
    parts = (
        f"**Supervised (S)**\n\n{head}| D | cross-attention (<b>) | .91 [.88, .94] |\n",
        f"**From normal records alone (U)**\n\n{head}| A | paper-baseline | .71 |\n",
        "Not to be had:\n\n- late-fusion: P4: too few\n- knn: P1: none\n",
    )
    io.write_text(folder / "main.md", "\n".join(parts))
    found = class_summary.study_tables(folder)
    assert [(one.title, one.left, one.rows) for one in found] == [
        ("every model on every fold: Supervised (S)", 2, [["D", "cross-attention (<b>)", ".91 [.88, .94]"]]),
        ("every model on every fold: From normal records alone (U)", 2, [["A", "paper-baseline", ".71"]]),
    ]
    assert found[1].note == "Not to be had: late-fusion: P4: too few; knn: P1: none" and not found[0].note
    report.main()
    text = (here / "metrics/report/index.html").read_text()
    assert "The study: every model on every fold" in text and "cross-attention (&lt;b&gt;)" in text
    assert class_summary.study_tables(here / "metrics/weld/nothing") == []


def test_verdicts_of_the_page_follow_from_the_rule_that_held_out_records_gave(here):
    folder = here / "metrics/weld/telling/cross-attention"
    stored = io.read_json(folder / "verdicts.json")
    found = class_verdict.first_told(folder)
    for word in ("accept", "review", "reject"):
        assert sum(stored["test"][word].values()) == sum(one.decision == word for one in found.values())
    held = sum(sum(both.values()) for both in stored["val"].values())
    assert held == sum(one["seed"] == 0 for one in told(here, "cross-attention", "val"))
    assert all(len(one.ranking) == 3 and "normal" not in dict(one.ranking) for one in found.values())


def test_predict_tells_a_record_as_evaluate_did(here):
    one = next(record for record in samples(0, 120) if record.record_id == told(here, "cross-attention")[0]["record_id"])
    write_record(here / "given.pt", one)
    settings = params.load()
    model = choose(settings, dataset="weld", model="cross-attention")
    (verdict,) = record_predict.predict(settings, model, [here / "given.pt"], {}, threshold_of(model))
    stored = class_verdict.first_told(model.results)[one.record_id]
    assert (verdict.decision, verdict.told) == (stored.decision, stored.told)
    assert [name for name, _ in verdict.faults] == [name for name, _ in stored.ranking]
    shown = record_predict.render(verdict)
    assert f"{verdict.decision}; told: {verdict.told}" in shown and json.dumps(verdict._asdict())
    plain = choose(settings, dataset="weld", model="knn")
    (other,) = record_predict.predict(settings, plain, [here / "given.pt"], {}, threshold_of(plain))
    assert other.told is None and "told:" not in record_predict.render(other)


@pytest.mark.parametrize(
    ("interval", "said"), [((0.1, -0.02, 0.2), "cannot tell from no difference"), ((0.1, 0.05, 0.2), "is better"), ((-0.1, -0.2, -0.05), "is worse")]
)
def test_a_difference_is_called_one_only_where_its_interval_leaves_zero_out(monkeypatch, interval, said):
    found = record_tables.Difference("cross-attention", "mid-fusion", Interval(*interval), 40)
    monkeypatch.setattr(record_tables, "difference", lambda first, second, seen: found if second == "mid-fusion" else None)
    text = next(text for text in record_tables.compared(*compared()).said if text.startswith("ROC AUC of cross-attention"))
    assert said in text and text.count("which") == 1


def test_a_rule_of_another_version_says_what_to_run(tmp_path):
    io.write_json(tmp_path / "verdicts.json", {"rule": {"bound": [0.5, 0.5], "normal": 0, "coverage": 0.9, "margin": None}, "coverage": 0.9})
    with pytest.raises(io.DamagedFile, match="run the stage that makes it again"):
        class_verdict.rule_of(tmp_path)


def history(train: list[float], val: list[float]) -> list[dict]:
    rows = zip(train, val, strict=True)
    return [{"training": "network", "step": place, "epoch": place, "train_loss": one, "val_loss": two} for place, (one, two) in enumerate(rows)]


@pytest.mark.parametrize(("val", "over"), [([1.0, 0.5, 0.7, 0.9, 1.2], True), ([1.0, 0.8, 0.7, 0.6, 0.7], False), ([1.0, 0.7, 0.7, 0.7, 0.71], False)])
def test_over_fitting_is_said_where_validation_rises_from_before_half_of_the_training_on(tmp_path, val, over):
    from stages.metrics.record_classes import learning_csv

    io.write_text(tmp_path / "learning.csv", learning_csv({0: history([1.0, 0.6, 0.4, 0.2, 0.1], val), 1: history([1.0] * 5, [1.0] * 5)}))
    row = type("Row", (), {"folder": tmp_path, "model": "mid-fusion"})
    (one,) = class_summary.trainings(row)
    assert bool(one.overfitted) == over and one.best == int(np.argmin(val))
    if over:
        assert "epoch 2 of 5 (0.500) and rises to 1.200" in one.overfitted


@pytest.mark.parametrize(("told", "said"), [(0.6, ""), (0.85, "tells 0.85 of them and 0.50 of the others")])
def test_knowing_training_records_by_heart_is_said_where_validation_loss_does_not_rise(tmp_path, told, said):
    from stages.metrics.record_classes import learning_csv

    rows = [row | {"train_accuracy": told, "val_accuracy": 0.5} for row in history([1.0, 0.6, 0.4], [1.0, 0.9, 0.8])]
    io.write_text(tmp_path / "learning.csv", learning_csv({0: rows}))
    (one,) = class_summary.trainings(type("Row", (), {"folder": tmp_path, "model": "mid-fusion"}))
    assert said in one.overfitted and bool(one.overfitted) == bool(said)


def test_where_the_recommended_model_tells_no_classes_the_one_that_tells_most_is_shown(here):
    rows, result = compared()
    knn = next(row for row in rows if row.model == "knn")
    found = class_summary.class_section("weld", rows, knn, result)
    told_best = max((row for row in rows if "classes" in result[row.model] and row.kind != "control"), key=lambda row: row.metrics["macro_f1"]["value"])
    assert found["model"] == told_best.model != rows[0].model and found["verdicts"]
    candidates = [row._replace(candidate=row.model == "knn") for row in rows]
    section = record_summary.section(params.load(), "weld", candidates, result)
    assert section["recommended"] == "knn" and section["shown"] == told_best.model and all(case["told"] for case in section["cases"]) and section["cases"]
