"""The trees have the names that scripts of old look for, and hold what the pipeline wrote."""

import csv
import shutil
from pathlib import Path

import torch

from stages import io
from stages.serving.outputs import folders, write_trees

STEM = "tiny_photos_patchcore_epochs-1"


def test_a_folder_called_outputs_is_the_first_root_itself():
    assert folders(Path("a/outputs")) == (Path("a/outputs"), Path("a/results"))
    assert folders(Path("a/b")) == (Path("a/b/outputs"), Path("a/b/results"))


def test_every_file_is_there_under_its_name(trained, tmp_path):
    [folder] = write_trees(trained, "tiny-patchcore", tmp_path)
    judged = trained / "metrics/tiny/patchcore"
    assert folder == tmp_path / "outputs/tiny/photos/patchcore"
    assert (folder / f"results_{STEM}_thresholds.txt").read_text() == (judged / "photos/thresholds.txt").read_text()
    assert (folder / f"histogram_{STEM}_scores.png").read_bytes() == (judged / "photos/histogram_scores.png").read_bytes()
    pictures = sorted(path.name.removeprefix(f"image_{STEM}_") for path in folder.glob("image_*"))
    assert pictures == sorted(path.name for path in (judged / "photos/overlays").glob("*.png")) and len(pictures) == 8
    results = tmp_path / "results/tiny/patchcore/assay"
    for name in ("summary_metrics.csv", "summary_metrics_pretty.csv", "summary_metrics_pretty.md", "photos/metrics.csv", "photos/overlays/index.json"):
        assert (results / name).read_bytes() == (judged / name).read_bytes(), name


def test_the_pth_loads_without_code_and_is_the_model(trained, tmp_path):
    [folder] = write_trees(trained, "tiny-patchcore", tmp_path)
    state = torch.load(folder / f"model_{STEM}.pth", weights_only=True)
    model = io.read_model(trained / "models/tiny/patchcore/photos/seed0/model.safetensors")
    assert state.keys() == model.keys() and all(torch.equal(state[name], model[name]) for name in model)


def test_each_row_of_a_group_has_folders_of_its_own(trained, tmp_path):
    write_trees(trained, "tiny-trivial", tmp_path)
    assert sorted(path.name for path in (tmp_path / "outputs/tiny/photos").iterdir()) == ["mean-image", "random-score"]
    assert sorted(path.name for path in (tmp_path / "results/tiny").iterdir()) == ["mean-image", "random-score"]


def test_epochs_asked_for_stand_in_the_name_unless_steps_cut_them_short(trained):
    from stages.params import ModelEntry
    from stages.serving.outputs import _epochs

    place = trained / "models/tiny/patchcore/photos/seed0"
    assert _epochs(ModelEntry(detector="a.b", epochs=50), place) == 50
    assert _epochs(ModelEntry(detector="a.b", epochs=50, steps=3), place) == 1


def test_a_summary_is_of_all_categories_even_where_they_came_one_by_one(trained, tmp_path):
    """Their mean is then the plain mean, without an interval that nobody computed."""
    write_trees(trained, "tiny-patchcore", tmp_path)
    results = tmp_path / "results/tiny/patchcore/assay"
    shutil.copytree(results / "photos", results / "earlier")
    text = (results / "earlier/metrics.csv").read_text().splitlines()
    text[1] = "image_auroc,0.5,0.4,0.6,"
    (results / "earlier/metrics.csv").write_text("\n".join(text) + "\n")
    write_trees(trained, "tiny-patchcore", tmp_path)
    with (results / "summary_metrics.csv").open() as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["earlier", "photos", "mean"]
    assert [float(rows[name]["image_auroc"]) for name in rows] == [0.5, 1.0, 0.75]
    assert "| mean | 75.0 |" in (results / "summary_metrics_pretty.md").read_text()


def test_pictures_of_an_earlier_judgement_do_not_stay(trained, tmp_path):
    [folder] = write_trees(trained, "tiny-patchcore", tmp_path)
    stale, other = folder / f"image_{STEM}_99-miss-gone.png", folder / "image_tiny_photos_patchcore_epochs-7_99.png"
    stale.touch(), other.touch()
    write_trees(trained, "tiny-patchcore", tmp_path)
    assert not stale.exists() and other.exists()
