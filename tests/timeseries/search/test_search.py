"""The search with the real model, as small as it can be."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stages import io
from stages.errors import UserError
from stages.serving.cli import app
from stages.timeseries.masked_autoencoder import MaskedAutoencoder
from stages.timeseries.search import judging, origin, outputs
from stages.timeseries.search.grid import GRIDS
from stages.timeseries.search.plan import Plan, Stage
from stages.timeseries.search.two_stage import Limits, search
from stages.types import Batch

STAGE = Stage(3000, 0.3, 0.2, 1, 32)
TINY = Plan(gain=1.0, interval_scale=0.5, judged=(30, 10, 20), quick=STAGE, full=STAGE._replace(epochs=2))
FILES = [
    "best_config.json",
    "best_model.pt",
    "best_model.safetensors",
    "full_results.csv",
    "histories.json",
    "metadata.json",
    "quick_results.csv",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("search")
    result = search(TINY, folder, Limits(combinations=3, keep=(1, 1)))
    return result, folder


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    outputs.write(found[0], out, {"versions": {}})
    return out


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("regime", ["weak", "unsup-contaminated"])
def test_every_combination_is_one_that_the_model_can_be_built_with(grid, regime):
    plan = Plan(grid=grid, regime=regime)
    for point in plan.points:
        options = judging.options_of(plan, plan.quick, point.levels)
        model = MaskedAutoencoder(**options)
        assert model.mask_last_n == 100 // point.levels["num_patches"] and model.regime == regime
        assert all(options[name] == level for name, level in point.levels.items())


def test_levels_that_share_a_network_differ_in_what_it_learns_from_anomalies():
    """Else two combinations of the grid would be the same model. With fewer than 16 normal windows the dynamic margin is not measured."""
    plan, same = Plan(), {"masking_ratio": 0.4, "num_patches": 10, "patchify_mode": "linear"}
    label = torch.zeros(40, 100, dtype=torch.int8)
    label[::2, 40:60] = 1
    window = torch.randn(40, 100, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch({"window": window, "label": label}, label.amax(1).long(), None, [], [])

    def loss(levels: dict) -> float:
        model = MaskedAutoencoder(**judging.options_of(plan, plan.quick, levels))
        model._new_network(8, seed=0)
        return model._loss(batch, torch.Generator().manual_seed(0), done=0.5).item()

    compared = [point.levels for point in plan.points if same.items() <= point.levels.items()]
    assert len({loss(levels) for levels in compared}) == len(compared) == 2 * 3 * 2 * 2


def test_the_files_are_there_and_say_the_same_of_the_best(found, written):
    result, _ = found
    assert sorted(path.name for path in written.iterdir()) == FILES
    full, config = _rows(written / "full_results.csv"), io.read_json(written / "best_config.json")
    best = max(full, key=lambda row: float(row["val_roc_auc"]))
    assert int(best["number"]) == config["number"] == result.best["number"]
    assert {name: str(level) for name, level in config["levels"].items()} == {name: best[name] for name in GRIDS["seed"]}
    assert config["figures"]["test_roc_auc"] == float(best["test_roc_auc"]) and config["fitted_again_with_the_same_figures"]
    gained = float(best["test_roc_auc"]) - float(best["quick_test_roc_auc"])
    assert float(best["improvement"]) == pytest.approx(gained, abs=1e-6) and best["selection_criterion"]
    metadata = io.read_json(written / "metadata.json")
    assert metadata["selection"]["per_level"] == 5 and metadata["combinations"]["quick"] == {"of": 432, "finished": 3}
    assert set(metadata["main_effects"]["factors"]) == set(GRIDS["seed"])


def test_the_best_model_is_loaded_from_its_files_and_scores_as_it_was_judged(found, written):
    result, _ = found
    config = io.read_json(written / "best_config.json")
    model = MaskedAutoencoder(**config["options"])
    model.load_state_dict(io.read_model(written / "best_model.safetensors"))
    task = judging.task_of(TINY, "full")
    measured = judging.figures(task.judged["test"], *judging.window_scores(model.eval(), task, task.judged["test"]))
    assert {f"test_{name}": round(value, 6) for name, value in measured.items()}.items() <= result.best["figures"].items()
    plain = torch.load(written / "best_model.pt", weights_only=True)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


def test_a_window_is_scored_as_a_stream_scores_its_last_step(written):
    config = io.read_json(written / "best_config.json")
    model = MaskedAutoencoder(**config["options"])  # last_patch, every step
    model.load_state_dict(io.read_model(written / "best_model.safetensors"))
    task = judging.task_of(TINY, "full")
    values = task.signal.values[1500:2100]
    judged = judging.Judged(np.arange(1700, 2000, 7), np.zeros(43, int))
    stream = model.eval().score(torch.from_numpy(values)).numpy()
    score = judging.window_scores(model, task, judged)[0]
    np.testing.assert_allclose(score, stream[judged.ends - 1 - 1500], rtol=1e-4, atol=1e-5)


def test_what_the_third_block_holds_decides_nothing(found):
    """With other windows to report on, the validation figures of a combination stay."""
    result, _ = found
    first = result.quick[0]
    judging.task_of.cache_clear()
    task = judging.task_of(TINY, "quick")
    original = judging.task_of
    test = task.judged["test"]
    try:
        judging.task_of = lambda plan, stage: task._replace(judged=task.judged | {"test": judging.Judged(test.ends[5:], test.kind[5:])})
        again = judging.judge(TINY, "quick", first["number"])
    finally:
        judging.task_of = original
    same = {name: again["figures"][name] == value for name, value in first["figures"].items()}
    assert all(kept for name, kept in same.items() if name.startswith("val_"))
    assert not all(kept for name, kept in same.items() if name.startswith("test_"))


def test_labels_reach_the_fit_in_the_regime_weak_alone():
    for regime in ("weak", "unsup-contaminated", "unsup-clean", "synth-erase"):
        plan = TINY._replace(regime=regime)
        task = judging.task_of(plan, "quick")
        train, held_out = judging.segments(plan, task)
        assert all((segment.label is not None) is (regime == "weak") for segment in train)
        label = task.signal.label
        anomalous = sum(int(label[segment.start : segment.start + segment.steps].sum()) for segment in train)
        assert (anomalous == 0) is (regime == "unsup-clean")
        assert held_out and not any(label[segment.start : segment.start + segment.steps].any() for segment in held_out)


def test_a_combination_without_anomalies_to_judge_by_is_refused_with_the_reason(tmp_path):
    plan = TINY._replace(interval_scale=1000.0)
    result = search(plan, tmp_path, Limits(combinations=2, keep=(1, 1)))
    assert all("no anomalous" in line["refused"] for line in result.quick)
    with pytest.raises(UserError, match="no anomalous"):
        outputs.write(result, tmp_path / "out", {})


def test_a_changed_plan_or_changed_code_is_not_gone_on_with(tmp_path, monkeypatch):
    origin.begin(tmp_path, TINY)
    origin.begin(tmp_path, TINY)
    assert origin.go_on(tmp_path) == TINY
    with pytest.raises(UserError, match="another plan"):
        origin.begin(tmp_path, TINY._replace(seed=1))
    monkeypatch.setattr(origin, "code", lambda: {**json.loads((tmp_path / "search.json").read_text())["code"], "training.py": "0"})
    with pytest.raises(UserError, match=r"training\.py changed"):
        origin.go_on(tmp_path)


def test_the_command_goes_on_with_a_folder_and_tells_what_was_found(found, tmp_path):
    _, folder = found
    for stage in ("quick", "full"):
        (tmp_path / f"{stage}.jsonl").write_bytes((folder / f"{stage}.jsonl").read_bytes())
    origin.begin(tmp_path, TINY)
    arguments = ["search", "series", "--resume", str(tmp_path), "--max-combinations", "3", "--keep", "1", "1"]
    refused = CliRunner().invoke(app, [*arguments, "--grid", "improved"])
    assert isinstance(refused.exception, UserError) and "--grid" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["stage"] == "full" and told["best"]["number"] == told["rows"][0]["number"] == found[0].best["number"]
    about = io.read_json(tmp_path / "metadata.json")
    assert about["machine"]["workers"] == 1 and about["seconds"]["quick"] > 0 and about["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(("option", "value"), [("--grid", "best"), ("--regime", "none"), ("--category", "trivial")])
def test_a_wrong_word_is_refused_before_anything_is_written(option, value, tmp_path):
    refused = CliRunner().invoke(app, ["search", "series", option, value, "--out", str(tmp_path / "out")])
    assert isinstance(refused.exception, UserError) and value in str(refused.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_twelve_combinations_killed_and_gone_on_with_by_two_workers_end_as_one_run_of_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        origin.begin(folder, TINY)

    def command(folder: Path, workers: int) -> list[str]:
        words = ["search", "series", "--resume", str(folder), "--max-combinations", "12", "--keep", "2", "3", "--workers", str(workers)]
        return [sys.executable, "-m", "stages.serving.cli", *words]

    subprocess.run(command(whole, 1), check=True, capture_output=True)
    process = subprocess.Popen(command(killed, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = killed / "quick.jsonl"
    while not (ledger.is_file() and ledger.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert ledger.read_bytes().count(b"\n") < 12
    subprocess.run(command(killed, 2), check=True, capture_output=True)
    for name in set(FILES) - {"metadata.json"}:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert len(_rows(whole / "quick_results.csv")) == 12 and len(_rows(whole / "full_results.csv")) == 3
