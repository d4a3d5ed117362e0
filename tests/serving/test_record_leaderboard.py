"""Records in the table that people read, and in the commands that run their verbs."""

import json
import sys

import pytest

from stages import io, params
from stages.serving import reference, verbs
from stages.serving.leaderboard import leaderboard, markdown, render
from stages.serving.verdict import recommended
from tests.record_results import ROWS, finished


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def rows(project):
    return leaderboard(params.load(project / "params.yaml"), project)["station"]


def test_records_are_ranked_by_roc_auc_and_a_refused_row_comes_last(rows):
    areas = [row.metrics["roc_auc"]["value"] for row in rows[:-1]]
    assert areas == sorted(areas, reverse=True) and {row.task for row in rows} == {"records"}
    assert (rows[-1].model, rows[-1].rank, rows[-1].refused) == ("yamnet-only", None, "E101 no weights of yamnet")
    assert {row.model for row in rows} == {*ROWS, "yamnet-only"}


def test_what_learns_without_labels_and_what_knows_nothing_is_marked(rows, project):
    kinds = {row.model: row.kind for row in rows}
    assert (kinds["perceiver-moe"], kinds["knn"], kinds["random"]) == ("supervised", "unsupervised", "control")
    text = markdown(leaderboard(params.load(project / "params.yaml"), project))
    assert "knn (unsupervised)" in text and "random (control)" in text and "perceiver-moe (quick)" in text


def test_ties_come_from_the_paired_draws_and_a_random_row_is_never_tied_with_the_best(rows, project, tmp_path):
    tied = {row.model: row.tied for row in rows}
    assert tied[rows[0].model] is True and tied["random"] is False and tied["yamnet-only"] is None
    second = next(row for row in rows if row.rank == 2)
    copied = io.read_table(rows[0].folder / "draws.parquet")
    path = second.folder / "draws.parquet"
    before = path.read_bytes()
    io.write_table(path, {name: [row[name] for row in copied] for name in copied[0]})
    try:
        again = leaderboard(params.load(project / "params.yaml"), project)["station"]
    finally:
        path.write_bytes(before)
    assert next(row for row in again if row.rank == 2).tied is True


def test_the_bench_gives_costs_and_the_recommended_model_is_no_control(rows):
    assert {row.model: row.latency_ms for row in rows[:-1]}["concat-mlp"] == 2.0
    assert recommended(rows).kind == "supervised"


@pytest.mark.parametrize("width", [80, 130, 320])
def test_no_figure_is_cut_off(project, width):
    text = render(leaderboard(params.load(project / "params.yaml"), project), width=width)
    assert "…" not in text and "station: 95 % interval" in text and "ms/record" in text.replace("\n", "")


def test_the_command_prints_records_as_json(project, monkeypatch, assay):
    monkeypatch.chdir(project)
    code, out, _ = assay("leaderboard", "--json")
    assert code == 0 and [row["model"] for row in json.loads(out)["station"]][-1] == "yamnet-only"


def test_images_are_never_judged_by_a_model_of_records(project):
    with pytest.raises(FileNotFoundError, match="no results"):
        reference.choose(params.load(project / "params.yaml"), project)


def test_from_python_a_data_set_of_records_is_refused_with_the_commands_that_train_it(root, monkeypatch):
    from stages.serving import api

    monkeypatch.chdir(root)
    with pytest.raises(params.ParamsError, match=r"station is a data set of records .*`assay train station`, then `assay evaluate station`"):
        api.train("station", "all", "perceiver-moe")


def test_names_of_records_stand_for_the_verbs_of_records(project, monkeypatch, tmp_path):
    settings = params.load(project / "params.yaml")
    assert verbs.jobs(settings, "train", ["station"], False) == list(settings.records.runs)
    assert verbs.jobs(settings, "bench", [], True) == ["station"]
    assert verbs.jobs(settings, "extract", [], True) == ["station"]
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    for verb, name, module in (
        ("train", "station-perceiver-moe", "train_records"), ("bench", "station", "bench_records"), ("extract", "station", "extract_records"),
    ):  # fmt: skip
        said = tmp_path / f"{verb}.txt"
        (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
        with said.open("w+") as out:
            verbs.run(verb, name, project=tmp_path, out=out)
        assert said.read_text().split() == ["-u", "-m", f"stages.{module}", name]


def test_what_an_earlier_run_left_is_removed_before_a_row_of_records_is_judged_again(project, monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    stale = tmp_path / "metrics/station/perceiver-moe/experts.json"
    io.write_json(stale, {})
    monkeypatch.setattr(sys, "executable", "/bin/true")
    verbs.run("evaluate", "station-perceiver-moe", project=tmp_path)
    assert not stale.exists()
