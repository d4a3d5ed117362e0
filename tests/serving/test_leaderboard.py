"""The table that people read: order, cells, refused rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import params
from stages.serving.leaderboard import Row, cell, leaderboard, render
from stages.serving.verdict import Scores, recommended, tied_with


@pytest.fixture
def board(tmp_path, root):
    """The leaderboard of `parts` from two results and a refused one."""
    folder = tmp_path / "metrics"
    (folder / "parts").mkdir(parents=True)

    def write(model, auroc, **more):
        mean = {"image_auroc": {"value": auroc, "low": auroc - 0.1, "high": auroc + 0.05}} if auroc else {}
        (folder / "parts" / f"{model}.json").write_text(json.dumps({"dataset": "parts", "model": model, "mean": mean, **more}))

    write("padim", 0.7)
    write("patchcore", 0.9, weights="random")
    write("stfpm", None, refused="E101 weights are missing")
    return leaderboard(params.load(root / "params.yaml"), tmp_path)


def test_best_first_and_refused_last_without_a_rank(board):
    assert [(row.rank, row.model) for row in board["parts"]] == [(1, "patchcore"), (2, "padim"), (None, "stfpm")]


def test_a_refused_row_shows_its_reason_and_random_weights_are_named(board):
    text = render(board, width=200)
    assert "stfpm: E101 weights are missing" in text and "patchcore RANDOM WEIGHTS" in text and ".900 [.800, .950]" in text


@pytest.mark.parametrize(("metric", "text"), [
    ({"value": 1.0, "low": 0.98765, "high": 1.0}, "1.00 [.988, 1.00]"),
    ({"value": 0.9996, "low": 0.0, "high": 1.0}, "1.00 [.000, 1.00]"),
    ({"value": 0.5}, ".500"),
    ({"value": None, "reason": "no masks"}, "n/a"),
    (None, "n/a"),
])  # fmt: skip
def test_cells(metric, text):
    assert cell(metric) == text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_figure_is_cut_off_whatever_the_width_of_the_terminal(board, width):
    lines = render(board, width=width).splitlines()
    assert any(".900 [.800, .950]" in line and "patchcore" in line for line in lines) and max(map(len, lines)) <= width
    assert "…" not in "".join(line for line in lines if "E101" not in line)


def scored(rng, quality: float, seeds: int = 2) -> dict[str, Scores]:
    label = np.r_[np.zeros(60, dtype=int), np.ones(60, dtype=int)]
    base = np.random.default_rng(9).normal(size=120)  # what is hard for one model is hard for the other
    score = np.stack([base + quality * label + 0.1 * rng.normal(size=120) for _ in range(seeds)])
    return {"a": Scores(score, label, [str(number) for number in range(120)])}


def test_a_model_is_tied_where_the_paired_interval_of_the_difference_holds_zero():
    """Paired: .05 of AUROC apart is told from 120 images because the same images are hard for both."""
    rng = np.random.default_rng(0)
    best, groups = scored(rng, 1.5), {str(number): str(number) for number in range(120)}
    assert tied_with(best, scored(rng, 1.5), groups) is True
    assert tied_with(best, scored(rng, 1.1), groups) is False


def test_models_that_saw_other_images_are_not_compared():
    rng = np.random.default_rng(0)
    best, groups = scored(rng, 1.5), {str(number): str(number) for number in range(120)}
    other = {"a": best["a"]._replace(sample_id=best["a"].sample_id[::-1])}
    assert tied_with(best, other, groups) is None and tied_with(best, {}, groups) is None


def test_the_best_is_recommended_unless_one_that_ties_takes_half_its_time():
    row = Row(1, "d", "slow", "", "", {}, {"latency_ms_p50": 9.0}, None, Path(), True, candidate=True)
    fast = row._replace(rank=2, model="fast", cost={"latency_ms_p50": 2.0})
    rows = [row, fast, fast._replace(rank=3, model="worse", cost={"latency_ms_p50": 1.0}, tied=False, candidate=False)]
    assert recommended(rows).model == "fast"
    assert recommended([row, fast._replace(cost={"latency_ms_p50": 4.6})]).model == "slow"
    assert recommended([row, fast._replace(cost={})]).model == recommended([row._replace(cost={}), fast]).model == "slow"
    assert recommended([row._replace(rank=None, refused="no weights", tied=None, candidate=False)]) is None
