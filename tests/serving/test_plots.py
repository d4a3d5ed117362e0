"""`assay plots series`: pictures come from what the folder of a search holds, the model judges its windows as the search did, what is missing is said."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

from stages import io
from stages.errors import Missing, UserError
from stages.metrics.ranking import auroc
from stages.serving import experiment_pictures
from stages.serving.cli import app
from stages.timeseries.search import judging, outputs
from stages.timeseries.search.grid import GRIDS
from stages.timeseries.search.plan import Plan, Stage
from stages.timeseries.search.two_stage import Found, Limits

STAGE = Stage(6000, 0.4, 0.25, 1, 128)
PLAN = Plan(interval_scale=0.4, quick=STAGE, full=STAGE, judged=(40, 20, 30))
NUMBERS = (5, 258)  # linear with 10 patches, cnn_first with 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search that was stopped after two combinations of its quick stage."""
    place = tmp_path_factory.mktemp("search")
    lines = [judging.judge(PLAN, "quick", number) for number in NUMBERS]
    outputs.write(Found(PLAN, Limits(quick_only=True), lines, None, []), place, {})
    return place


@pytest.fixture(scope="module")
def experiment(folder):
    return experiment_pictures.open_experiment(folder)


def test_the_best_model_judges_the_test_windows_as_the_search_did(experiment):
    scored = experiment.scored
    assert auroc(scored.score, scored.anomalous) == pytest.approx(experiment.config["figures"]["test_roc_auc"], abs=1e-6)
    assert auroc(scored.reconstruction, scored.anomalous) == pytest.approx(
        experiment.config["figures"]["test_reconstruction_auc"], abs=1e-6
    )
    assert scored.window.shape == scored.teacher.shape == scored.student.shape == (len(scored.score), 100, 8)


def test_the_last_patch_is_redrawn_from_the_same_mask_only_where_one_patch_is_hidden(experiment):
    """Five passes hide other patches too, so the errors along the window are near those of the score, not equal."""
    scored = experiment.scored
    last = np.square(scored.teacher - scored.window)[:, -scored.last :].mean((1, 2))
    assert np.corrcoef(last, scored.reconstruction)[0, 1] > 0.8
    assert not np.allclose(last, scored.reconstruction)


def test_a_window_is_named_after_the_last_anomaly_that_reaches_into_it(experiment):
    scored, task = experiment.scored, experiment.task
    for place, end in enumerate(task.judged["test"].ends):
        reaching = [region for region in task.signal.regions if region.start < end and region.stop > end - 100]
        assert scored.cause[place] == (max(reaching).kind if reaching else "")
        assert set(np.array(scored.variables)[scored.moved[place]]) == (set(max(reaching).variables) if reaching else set())
    assert (scored.cause[scored.kind == "normal"] == "").all() and (scored.cause[scored.kind != "normal"] != "").all()


def test_levels_and_figures_are_read_as_they_were_written(experiment):
    rows = experiment_pictures.quick(experiment).rows
    assert [row["number"] for row in rows] == list(NUMBERS)
    for row in rows:
        for factor, levels in GRIDS["seed"].items():
            assert any(row[factor] is level or row[factor] == level for level in levels) and type(row[factor]) is type(levels[0])
    assert rows[0]["patchify_mode"] == "linear" and rows[1]["patchify_mode"] == "cnn_first"


def test_only_the_convolution_over_the_whole_window_sees_beyond_its_patch(experiment):
    reach = experiment_pictures.reach(experiment.model)
    beside = {mode: np.delete(answer, np.arange(6, len(answer) - 6)).max() for mode, answer in reach.items()}
    assert beside["linear"] == beside["patch_cnn"] == 0 and beside["cnn_first"] > 0.1
    assert all(answer.max() == 1 for answer in reach.values())


def test_the_parts_of_the_network_have_all_of_its_parameters_but_the_mask_tokens(experiment):
    network, parts = experiment.model.network, experiment_pictures._parameters(experiment.model)
    tokens = sum(one.numel() for name, one in network.named_parameters() if "mask_token" in name)
    assert sum(parts.values()) + tokens == sum(one.numel() for one in network.parameters())


def test_what_the_folder_does_not_hold_is_said(experiment):
    found = {group.name: group for group in experiment_pictures.groups(experiment, ["data", "stage2", "training_progress"], retrain=False)}
    assert len(found["data"].figures) == 7 and found["data"].missing is None
    assert "full_results.csv is not there" in found["stage2"].missing and not found["stage2"].figures
    assert "--retrain" in found["training_progress"].missing


def test_a_folder_that_is_no_search_says_which_file_it_lacks(tmp_path):
    with pytest.raises(Missing, match=r"metadata\.json is not there.*assay search series"):
        experiment_pictures.open_experiment(tmp_path)


def test_the_model_of_another_configuration_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        if file.is_file():
            io.write_bytes(tmp_path / file.name, file.read_bytes())
    config = io.read_json(tmp_path / "best_config.json")
    io.write_json(tmp_path / "best_config.json", {**config, "options": {**config["options"], "d_model": 32}})
    with pytest.raises(io.DamagedFile, match=r"best_model\.safetensors"):
        _ = experiment_pictures.open_experiment(tmp_path).model


def test_the_command_writes_each_picture_beside_its_numbers(folder):
    asked = ["plots", "series", "--experiment-dir", str(folder), "--only", "architecture", "--only", "stage2"]
    said = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert said.exit_code == 0 and "6 pictures" in said.output and "not drawn: full_results.csv" in said.output
    written = sorted((folder / "visualization" / "architecture").iterdir())
    assert [file.suffix for file in written] == [".csv", ".png"] * 6
    for table, picture in zip(written[::2], written[1::2], strict=True):
        assert table.stem == picture.stem and picture.read_bytes().startswith(b"\x89PNG")
        assert len(list(csv.reader(table.read_text().splitlines()))) > 1


def test_an_unknown_group_is_refused_by_name(folder):
    said = CliRunner().invoke(app, ["plots", "series", "--experiment-dir", str(folder), "--only", "stage3"])
    assert isinstance(said.exception, UserError) and "stage1, stage2" in str(said.exception)


@pytest.mark.slow
def test_training_once_more_ends_where_the_search_ended(experiment):
    progress = experiment_pictures.progress(experiment, retrain=True)
    assert progress.figures[-1]["ROC AUC"] == pytest.approx(experiment.config["figures"]["test_roc_auc"], abs=1e-6)
    assert (np.diff(progress.epoch) > 0).all() and progress.teacher.shape == (len(progress.epoch), 100)
