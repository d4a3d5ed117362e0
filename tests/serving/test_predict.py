"""A verdict says what the stored numbers say, and what is unlike training is told rather than judged in silence."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import io, params
from stages.params import ParamsError
from stages.plots.overlay import Scale
from stages.serving import predict as serve
from stages.serving import reference
from stages.serving.verdict import VERDICTS


@pytest.fixture
def project(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def judged(*names: str, out: Path | None = None, model: str = "patchcore") -> list[serve.Verdict]:
    settings = params.load()
    return list(serve.predict(settings, reference.choose(settings, model=model), serve.find_images([Path(name) for name in names]), out))


def test_live_verdicts_are_those_of_the_stored_scores_and_thresholds(project):
    stored = io.read_table(Path("metrics/tiny/patchcore/predictions.parquet"))
    threshold = io.read_json(Path("metrics/tiny/patchcore/thresholds.json"))["photos"]["thresholds"]["conformal"]["value"]
    wanted = {tuple(row["sample_id"].split("/")[-2:]): row for row in stored if row["split"] == "test" and row["seed"] == 0}
    found = judged("photos/test")
    assert len(found) == len(wanted) == 8
    for verdict in found:
        row = wanted[Path(verdict.image).parent.name, Path(verdict.image).stem]
        assert verdict.image_score == pytest.approx(row["image_score"], rel=1e-5)
        assert verdict.threshold == threshold and verdict.margin == pytest.approx(verdict.image_score - threshold)
        assert verdict.verdict == ("anomalous" if row["label"] else "good")


def test_percentile_and_margin_by_hand():
    threshold = type("Fitted", (), {"value": 4.0})
    held_out = reference.Reference(np.array([1.0, 2.0, 2.0, 4.0]), threshold, None, None, ())
    model = reference.Model(Path(), "d", "c", "m", Path(), Path())
    image = np.zeros((4, 4, 3), np.uint8)
    for score, percentile, verdict, margin, relative in (
        (0.5, 0.0, "good", -3.5, -1.75),  # a typical good part has 2, so the threshold is 2 away
        (2.0, 75.0, "good", -2.0, -1.0),
        (4.0, 100.0, "good", 0.0, 0.0),  # only what exceeds the threshold is anomalous
        (5.0, 100.0, "anomalous", 1.0, 0.5),
    ):
        found = serve.judge(model, held_out, Path("a.png"), score, image)
        assert (found.percentile, found.verdict, found.margin, found.relative_margin) == (percentile, verdict, margin, relative), score


def test_without_a_threshold_there_is_no_verdict():
    nothing = reference.Reference(np.zeros(0), type("Fitted", (), {"value": None}), None, None, ())
    found = serve.judge(reference.Model(Path(), "d", "c", "m", Path(), Path()), nothing, Path("a.png"), 1.0, np.zeros((4, 4, 3), np.uint8))
    assert (found.verdict, found.percentile, found.margin) == ("unknown", None, None)


def test_held_out_scores_are_of_good_parts_that_the_first_model_never_saw(project):
    model = reference.choose(params.load())
    assert model.name == "patchcore" and model.place.name == "seed0"
    rows = io.read_table(model.results / "predictions.parquet")
    wanted = [row["image_score"] for row in rows if row["split"] in ("train", "val") and row["seed"] == 0]
    assert len(wanted) == 12 and np.array_equal(reference._held_out_scores(model), np.sort(wanted))


def test_colours_are_anchored_at_held_out_good_images_not_at_the_image(project, tmp_path):
    """The same picture comes out whatever other images are asked about, and the scale is kept for the next time."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    [first] = judged("photos/test/good/000.png", out=alone)
    judged("photos/test/good/000.png", "photos/test/square/000.png", out=together)
    assert first.overlay == (alone / "000.png").as_posix()
    assert (alone / "000.png").read_bytes() == (together / "000.png").read_bytes()
    kept = [io.read_json(path) for path in Path(".assay/scales").glob("*.json")]
    assert any(about["scale"] and about["scale"]["threshold"] > about["scale"]["typical"] for about in kept)


def test_another_model_in_the_same_place_has_a_scale_of_its_own(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "project", ignore=shutil.ignore_patterns(".assay"))
    monkeypatch.chdir(tmp_path / "project")
    judged("photos/test/good/000.png")
    place = Path("models/tiny/patchcore/photos/seed0/model.safetensors")
    shutil.copy("models/tiny/patchcore/photos/seed1/model.safetensors", place)
    judged("photos/test/good/000.png")
    assert len(list(Path(".assay/scales").glob("*.json"))) == 2


def test_a_picture_is_at_most_1024_pixels_and_keeps_its_shape():
    image = np.full((600, 3000, 3), 120, np.uint8)
    shown = Image.open(BytesIO(serve.draw(image, np.zeros((8, 8)), Scale(0.0, 1.0), "caption")))
    assert shown.width == 2 * 1024 + 6 and shown.height == round(600 * 1024 / 3000) + 22


def test_pictures_of_equal_names_do_not_overwrite_each_other():
    paths = [Path("a/0.png"), Path("b/0.jpg"), Path("c/0-2.png"), Path("d/0.png")]
    assert serve._picture_names(paths) == ["0.png", "0-2.png", "0-2-2.png", "0-3.png"]


def test_an_image_that_is_dark_or_stretched_is_judged_with_a_warning(project, tmp_path):
    Image.fromarray(np.full((64, 64, 3), 20, np.uint8)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((64, 128, 3), 110, np.uint8)).save(tmp_path / "wide.png")
    dark, wide = judged(str(tmp_path / "dark.png"), str(tmp_path / "wide.png"))
    assert len(dark.warnings) == 1 and "mean level is 20 of 255" in dark.warnings[0]
    assert len(wide.warnings) == 1 and "width / height is 2.00, the training images have 1.00" in wide.warnings[0]
    assert judged("photos/test/good/000.png")[0].warnings == []


def test_a_file_that_is_no_image_takes_nothing_from_the_others(project, tmp_path, assay, monkeypatch):
    monkeypatch.chdir(project)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/broken.png").write_bytes(b"no image")
    shutil.copy("photos/test/square/000.png", tmp_path / "new/part.png")
    code, out, _ = assay("predict", str(tmp_path / "new"), "-o", str(tmp_path / "pictures"), "--json")
    broken, part = json.loads(out)
    assert code == 1 and broken["verdict"] == "unreadable" and "E204" in broken["warnings"][0] and broken["image_score"] is None
    assert part["verdict"] == "anomalous" and Path(part["overlay"]).is_file()


def test_the_text_names_score_percentile_verdict_margin_and_the_promise(project, tmp_path, assay, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = assay("predict", "photos/test/square/000.png", "-o", str(tmp_path))
    assert code == 0
    assert "patchcore on tiny / photos; threshold" in out and "false alarms expected per 1,000 good parts" in out
    assert "000.png: anomalous" in out and "100 % of 12 held-out good parts" in out and "margin +" in out and "picture: " in out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dataset": "tinny"}, "no data set 'tinny' with results here; did you mean 'tiny'?"),
        ({"category": "photo"}, "did you mean 'photos'?"),
        ({"model": "patchcor"}, "did you mean 'patchcore'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(project, asked, said):
    with pytest.raises(ParamsError) as error:
        reference.choose(params.load(), **asked)
    assert said in str(error.value)


def test_of_two_data_sets_one_must_be_named(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "project")
    text = (folder / "params.yaml").read_text()
    entry = "  tiny-patchcore:\n    dataset: tiny\n"
    (folder / "params.yaml").write_text(text.replace(entry, entry.replace("tiny", "other") + text.split(entry)[1].split("  tiny-padim")[0] + entry))
    shutil.copytree(folder / "metrics/tiny", folder / "metrics/other")
    result = json.loads((folder / "metrics/other/patchcore.json").read_text()) | {"dataset": "other"}
    (folder / "metrics/other/patchcore.json").write_text(json.dumps(result))
    monkeypatch.chdir(folder)
    with pytest.raises(ParamsError, match="which data set"):
        reference.choose(params.load())
    assert reference.choose(params.load(), dataset="tiny").dataset == "tiny"


def test_the_best_model_answers_unless_another_is_named(project):
    settings = params.load()
    assert reference.choose(settings).name == "patchcore"
    assert reference.choose(settings, model="random-score").place == Path("models/tiny/trivial/random-score/photos/seed0")


def test_the_model_that_the_report_recommends_answers(trained, tmp_path, monkeypatch):
    """Of models that tie the page may take a faster one than the first."""
    folder = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(folder)
    io.write_json(folder / VERDICTS, {"tiny": "mean-image", "other": None})
    assert reference.choose(params.load()).name == "mean-image"
    assert reference.choose(params.load(), model="patchcore").name == "patchcore"
    io.write_json(folder / VERDICTS, {"tiny": "a model that is no more"})
    assert reference.choose(params.load()).name == "patchcore"


def test_a_model_without_maps_gives_verdicts_without_pictures(project, tmp_path):
    [verdict] = judged("photos/test/good/000.png", out=tmp_path / "pictures", model="random-score")
    assert verdict.overlay is None and verdict.image_score is not None and not (tmp_path / "pictures").exists()


def test_a_refused_model_answers_with_its_reason(trained, tmp_path, monkeypatch):
    from stages.errors import UserError

    folder = shutil.copytree(trained, tmp_path / "project")
    (folder / "metrics/tiny/patchcore.json").write_text(json.dumps({"dataset": "tiny", "model": "patchcore", "refused": "E101 no weights"}))
    monkeypatch.chdir(folder)
    assert reference.choose(params.load()).name == "mean-image"
    with pytest.raises(UserError, match="E101 no weights"):
        reference.choose(params.load(), model="patchcore")


def test_no_image_no_folder_no_results_each_say_what_to_do(tmp_path, assay, trained, monkeypatch):
    (tmp_path / "empty").mkdir()
    shutil.copy(trained / "params.yaml", tmp_path)
    shutil.copy(trained / "photos/test/good/000.png", tmp_path)
    assert assay("predict", "empty")[::2] == (1, "UserError: empty holds no image. Name image files, or a folder with some in it\n")
    assert "nowhere is not here" in assay("predict", "nowhere")[2]
    code, _, err = assay("predict", "000.png")
    assert code == 1 and "no results in metrics/ yet. Run `dvc repro`" in err


def test_a_threshold_of_your_own_or_another_promise_decides_the_verdict(project, assay, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    model = reference.choose(params.load(), model="patchcore")
    held_out = reference._held_out_scores(model)
    [usual] = judged("photos/test/square/000.png")
    lenient = reference.threshold_of(model, value=usual.image_score + 1)
    [verdict] = serve.predict(params.load(), model, [Path("photos/test/square/000.png")], None, lenient)
    assert verdict.verdict == "good" and verdict.threshold == usual.image_score + 1
    promise = reference.threshold_of(model, false_alarm_rate=0.25)  # of 12 held-out parts the floor(0.25 * 13) = 3rd largest
    assert promise.value == held_out[-3] and promise.achieved["false_alarms_per_1000"] == pytest.approx(1000 * 3 / 13)
    code, out, _ = assay("predict", "photos/test/good", "--false-alarm-rate", "0.25", "-o", str(tmp_path))
    assert code == 0 and f"threshold {held_out[-3]:.4g} (conformal), 231 false alarms expected per 1,000 good parts" in out
    assert "give one of the two" in assay("predict", "photos", "--threshold", "1", "--false-alarm-rate", "0.1")[2]
    assert "must be in (0, 1), got 1.5" in assay("predict", "photos", "--false-alarm-rate", "1.5")[2]
