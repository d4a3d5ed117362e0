"""The table that people read: order, cells, refused rows."""

import json

import pytest

from stages import params
from stages.serving.leaderboard import cell, leaderboard, render


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
    return leaderboard(params.load(root / "params.yaml"), folder)


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
