"""A model that scores sets of images, through the verbs: named as such everywhere, without a threshold, and never the one that is shipped."""

import importlib
import json
from pathlib import Path

import pytest

from stages import ensemble, io, params
from stages.metrics.judgement import AT_THRESHOLD
from stages.metrics.thresholds import METHODS
from stages.params import ParamsError
from stages.serving import leaderboard as board
from stages.serving import predict as serve
from stages.serving import reference, summary, tune
from stages.serving.leaderboard import Row
from stages.serving.verdict import recommended
from tests.projects import tiny_project

MODEL = """\
  among:
    detector: zero_shot.musc
    label: one layer
    shots: 0
    layers:
      - layer2
    whole: null
    lowest: 1.0                   # half of the images that it sees are bad
runs:
  tiny-among:
    dataset: tiny
    model: among
    encoder: net
    pixels: pixels
    seeds:
      - 0
    code: stages/detectors/zero_shot/musc.py
    maths: stages/detectors/zero_shot/musc.py
"""


def go(*verbs):
    for verb in verbs:
        name, *arguments = verb.split()
        assert not importlib.import_module(f"stages.{name}").main(*arguments), verb


def with_musc(folder: Path) -> Path:
    tiny_project(folder)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("runs:\n", MODEL, 1))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = with_musc(tmp_path_factory.mktemp("transductive"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        go(
            "prepare tiny", "extract tiny pixels", "extract tiny net", "manifest tiny", "train tiny-among", "train tiny-trivial",
            "evaluate tiny-among", "evaluate tiny-trivial", "bench tiny",
        )  # fmt: skip
    return folder


@pytest.fixture
def project(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_its_images_are_ranked_and_nothing_is_said_at_a_threshold(project):
    result = io.read_json(Path("metrics/tiny/among.json"))
    assert result["label"] == "one layer, transductive" and result["transductive"] is True
    cells = result["categories"]["photos"]
    assert cells["image_auroc"]["value"] == 1.0 and cells["pixel_auroc"]["value"] is not None
    for name in AT_THRESHOLD:
        assert cells[name]["value"] is None and cells[name]["reason"].startswith("transductive: a score holds only among"), name
    fitted = io.read_json(Path("metrics/tiny/among/thresholds.json"))["photos"]["thresholds"]
    assert {name: one["value"] for name, one in fitted.items()} == dict.fromkeys(METHODS)
    assert all(one["reason"].startswith("transductive") for one in fitted.values())
    assert "no conformal threshold: transductive" in Path("metrics/tiny/among/photos/thresholds.txt").read_text()
    assert "transductive" not in io.read_json(Path("metrics/tiny/trivial.json"))["rows"]["mean-image"]


def test_held_out_images_are_not_scored_and_nothing_is_learnt(project):
    assert {row["split"] for row in io.read_table(Path("metrics/tiny/among/predictions.parquet"))} == {"test"}
    assert not list(Path("models/tiny/among").rglob("out_of_fold.parquet"))
    assert io.read_model(Path("models/tiny/among/photos/seed0/model.safetensors")) == {}


def test_the_leaderboard_names_it_and_does_not_count_it(project):
    rows = board.leaderboard(params.load())["tiny"]
    best, *others = rows
    assert best.model == "among" and best.rank is None and best.tied is None and not best.candidate
    assert [row.rank for row in others] == [1, 2] and recommended(rows).model == others[0].model
    for text in (board.render({"tiny": rows}, width=300), board.markdown({"tiny": rows})):
        assert "among (one layer, transductive)" in text


def test_the_page_names_it_and_recommends_another(project):
    from stages.plots import page

    settings = params.load()
    [(dataset, rows)] = board.leaderboard(settings).items()
    found = {result["model"]: result for result in board.results(settings).values()}
    section = summary.section(settings, dataset, rows, found)
    assert section["recommended"] in ("mean-image", "random-score")
    assert {point["model"] for point in section["curves"]["photos"]} == {"among (transductive)", "mean-image", "random-score"}
    assert not any("among" in why for why in section["verdict"]["why"])
    html = page.render("Assay", [section], {"date": "", "commit": "", "machine": {}}, board.cell)
    assert '<span class="tag">one layer, transductive</span>' in html and "no time for one alone" in html


def test_no_ensemble_asks_it(project):
    settings = params.load()
    alone = settings.model_copy(update={"runs": {"tiny-among": settings.runs["tiny-among"]}})
    assert ensemble._detectors(alone, "tiny") == {}


def test_the_bench_says_why_it_has_no_latency(project):
    models = io.read_json(Path("metrics/bench/tiny.json"))["models"]
    assert models["among"]["latency_ms_p50"] is None and models["among"]["reason"].startswith("transductive")
    assert models["among"]["throughput_per_s"] > 0 and models["among"]["flops"] > 0
    assert models["mean-image"]["latency_ms_p50"] > 0 and "reason" not in models["mean-image"]


def test_a_photo_is_judged_by_another_model(project):
    """Also before there is a report, though no model has a higher AUROC."""
    settings = params.load()
    assert reference.choose(settings).name in ("mean-image", "random-score")
    with pytest.raises(ParamsError, match="among is transductive.*Name another with --model: mean-image, random-score"):
        reference.choose(settings, model="among")
    verdict = next(serve.predict(settings, reference.choose(settings), sorted(Path("photos/test/square").glob("*.png"))[:1]))
    assert verdict.model != "among"


def test_held_out_images_cannot_tune_it(project):
    with pytest.raises(ParamsError, match="among is transductive"):
        tune.tune("among", budget_s=10)


def test_images_in_tiles_are_a_row_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(with_musc(tmp_path / "project"))
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("    kind: pixels\n", "    kind: pixels\n    canvas: [100, 128]\n    overlap: 8\n", 1))
    go("prepare tiny", "extract tiny pixels", "extract tiny net", "manifest tiny", "train tiny-among", "evaluate tiny-among")
    assert "cut into tiles" in json.loads(Path("metrics/tiny/among.json").read_text())["refused"]


def test_a_single_test_image_is_a_row_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(with_musc(tmp_path / "project"))
    for path in [*Path("photos/test").rglob("*.png")][1:]:
        path.unlink()
    go(
        "prepare tiny",
        "extract tiny pixels",
        "extract tiny net",
        "manifest tiny",
        "train tiny-among",
        "evaluate tiny-among",
    )
    assert "got 1" in json.loads(Path("metrics/tiny/among.json").read_text())["refused"]


def test_an_ensemble_below_it_is_still_the_best_that_can_be_had(root):
    """It stands above, and neither the tie nor the praise is measured against it."""

    def row(rank, model, value, tied, **more):
        return Row(
            rank, "parts", model, "", "", {"image_auroc": {"value": value, "low": value, "high": value}}, {}, None, Path(), tied, **more
        )

    rows = [
        row(None, "musc", 0.97, None, transductive=True),
        row(1, "ensemble", 0.95, True, members=("patchcore", "padim", "dfm")),
        row(2, "patchcore", 0.93, False, candidate=True),
    ]
    verdict = summary._verdict(params.load(root / "params.yaml"), rows[2], rows, [])
    assert verdict["headline"] == "Take patchcore" and any("better than any model alone" in why for why in verdict["why"])
    assert not any("musc" in why for why in verdict["why"])
