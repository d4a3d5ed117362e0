"""What the page says first: the model to take, and what asking several at once would bring."""

from pathlib import Path

import pytest

from stages import params
from stages.serving.leaderboard import Row
from stages.serving.summary import _verdict


def row(rank, model, value, tied, *, candidate=False, members=()):
    cell = {"value": value, "low": value - 0.01, "high": value + 0.01}
    return Row(rank, "parts", model, "", "", {"image_auroc": cell}, {}, None, Path(), tied, members, candidate)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(1, "ensemble", 0.95, True), (2, "patchcore", 0.93, False)], "reaches .950 [.940, .960]: better than any model alone"),
        ([(1, "ensemble", 0.94, True), (2, "patchcore", 0.93, True)], "not shown to be better than patchcore alone"),
        ([(1, "patchcore", 0.95, True), (2, "ensemble", 0.93, False)], "not shown to be better than patchcore alone"),
    ],
)
def test_an_ensemble_is_praised_only_where_the_images_show_it(root, rows, said):
    members = {"ensemble": ("patchcore", "padim", "dfm")}
    rows = [row(*one, candidate=one[1] == "patchcore", members=members.get(one[1], ())) for one in rows]
    best = next(one for one in rows if one.candidate)
    verdict = _verdict(params.load(root / "params.yaml"), best, rows, [])
    assert verdict["headline"] == "Take patchcore" and any(said in why for why in verdict["why"])
    assert not any("ranks first" in why for why in verdict["why"])
