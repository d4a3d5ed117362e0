"""Large images in tiles, from photos to verdicts: every verb takes tiles for images of their own, and results are of whole images."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from stages import io, params
from stages.datasets.images import read_image
from stages.encoders.batches import open_batches
from stages.serving import predict as serve
from stages.serving import reference
from tests.projects import SIZE, tiny_project

CANVAS, OVERLAP = (100, 128), 8
TILES = 2 * 3


def go(folder, *verbs):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in verbs:
            name, *arguments = verb.split()
            assert not importlib.import_module(f"stages.{name}").main(*arguments), verb


def cut(folder, canvas=CANVAS, overlap=OVERLAP):
    """Give the pixels entry of a project a canvas."""
    text = (folder / "params.yaml").read_text()
    entry = "    kind: pixels\n"
    assert text.count(entry) == 1
    (folder / "params.yaml").write_text(text.replace(entry, f"{entry}    canvas: [{canvas[0]}, {canvas[1]}]\n    overlap: {overlap}\n"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Photos in tiles through every verb."""
    folder = tiny_project(tmp_path_factory.mktemp("tiles"))
    cut(folder)
    go(
        folder, "prepare tiny", "extract tiny pixels", "extract tiny net", "manifest tiny", "train tiny-patchcore", "train tiny-trivial",
        "evaluate tiny-patchcore", "evaluate tiny-trivial", "bench tiny",
    )  # fmt: skip
    return folder


def test_a_row_of_the_stores_is_a_tile_and_a_row_of_the_results_an_image(project):
    index = io.read_table(project / "features/tiny/net/index.parquet")
    images = len(io.read_table(project / "data/tiny/samples.parquet"))
    assert len(index) == images * TILES
    predictions = io.read_table(project / "metrics/tiny/patchcore/predictions.parquet")
    assert len({row["sample_id"] for row in predictions}) == images and not any("#" in row["sample_id"] for row in predictions)
    assert sum(row["split"] == "train" and row["image_score"] is not None for row in predictions) == 10  # out of fold


def test_defects_are_found_and_located_on_the_whole_image(project):
    mean = json.loads((project / "metrics/tiny/patchcore.json").read_text())["mean"]
    assert mean["image_auroc"]["value"] == 1.0 and mean["pixel_auroc"]["value"] > 0.9
    rows = json.loads((project / "metrics/tiny/trivial.json").read_text())["rows"]
    assert rows["mean-image"]["mean"]["image_auroc"]["value"] == 1.0


def test_a_live_image_scores_as_the_stored_tiles_do_and_its_picture_is_whole(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    rows = io.read_table(Path("metrics/tiny/patchcore/predictions.parquet"))
    settings = params.load()
    images = serve.find_images([project / "photos/test/square"])
    found = list(serve.predict(settings, reference.choose(settings, model="patchcore"), images, tmp_path))
    wanted = [row["image_score"] for row in rows if "square" in row["sample_id"] and row["seed"] == 0]
    assert sorted(verdict.image_score for verdict in found) == pytest.approx(sorted(wanted), rel=1e-5)
    with Image.open(found[0].overlay) as picture:
        assert picture.height >= SIZE


def test_what_a_tile_is_labelled_is_what_its_mask_says(project, monkeypatch):
    monkeypatch.chdir(project)
    rows = [row for row in io.read_json(Path("data/tiny/manifest.json"))["samples"] if row["label"] == 1]
    batches = open_batches("tiny", "net", rows, ["layer2"], params.load())
    assert batches.samples == len(rows) * TILES
    for place in range(len(rows)):
        tiles = [tile for batch in batches.tiles_of(place) for tile in zip(batch.label.tolist(), batch.mask, strict=True)]
        assert [label for label, _ in tiles] == [int(mask.any()) for _, mask in tiles] and 0 < sum(label for label, _ in tiles) < TILES
    whole = batches.picture(0).numpy()
    path = project / "photos" / "/".join(rows[0]["sample_id"].split("/")[1:])
    photo = read_image(path if path.suffix else path.with_suffix(".png"))
    assert whole.shape == (*CANVAS, 3) and abs(whole.mean() - photo.mean()) < 2


def test_tiles_that_are_not_stored_give_the_same_scores(project, tmp_path_factory):
    """Pixels above the budget are decoded, features above it computed, when they are asked for."""
    folder = tiny_project(tmp_path_factory.mktemp("streamed"))
    cut(folder)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("budget_gb: ", "budget_gb: 0.00001 #", 1))
    go(
        folder,
        "prepare tiny",
        "extract tiny pixels",
        "extract tiny net",
        "manifest tiny",
        "train tiny-patchcore",
        "evaluate tiny-patchcore",
    )
    assert json.loads((folder / "features/tiny/pixels/encoder.json").read_text())["form"] == "streamed"
    streamed, stored = (json.loads((place / "metrics/tiny/patchcore.json").read_text())["mean"] for place in (folder, project))
    assert {name: cell["value"] for name, cell in streamed.items()} == pytest.approx(
        {name: cell["value"] for name, cell in stored.items()}, abs=1e-6
    )


def brushed(rng, side):
    """A brushed surface under uneven light."""
    grain = gaussian_filter(rng.normal(size=(side, side)).astype(np.float32), (1, 12)) * 120
    light = np.linspace(*rng.uniform(-12, 12, 2), side)[:, None]
    return np.repeat(np.clip(120 + grain + light, 0, 255)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.slow
def test_a_defect_of_12_pixels_on_2048_is_found_in_tiles_and_missed_without(tmp_path, root):
    """The same photos, the same model and the same weights, once resized whole to 224 pixels and once in tiles of 224."""
    side, size, rng, wanted = 2048, 12, np.random.default_rng(0), []
    folder = tiny_project(tmp_path / "whole")
    shutil.rmtree(folder / "photos")
    for split, kind, count in (("train", "good", 6), ("test", "good", 4), ("test", "speck", 4)):
        for number in range(count):
            image, mask = brushed(rng, side), np.zeros((side, side), dtype=np.uint8)
            if kind == "speck":
                row, column = rng.integers(100, side - 100, 2)
                yy, xx = np.mgrid[:side, :side]
                inside = (yy - row) ** 2 + (xx - column) ** 2 <= (size / 2) ** 2
                image[inside] = (image[inside] * 0.6).astype(np.uint8)
                mask[inside] = 255
                wanted.append((row, column))
                path = folder / "photos/ground_truth" / kind / f"{number:03d}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
            path = folder / "photos" / split / kind / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
    text = (
        (folder / "params.yaml")
        .read_text()
        .replace(f"image_size: {SIZE}", "image_size: 224")
        .replace("weights: random", "weights: efficientnet-lite0")
    )
    (folder / "params.yaml").write_text(
        text.replace("coreset_ratio: 0.1", "coreset_ratio: 0.001").replace("    - 1\n", "", 1).replace("folds: 3", "folds: 2")
    )
    tiled = shutil.copytree(folder, tmp_path / "tiled", symlinks=True)
    cut(tiled, (side, side), 28)
    auroc = {}
    for place in (folder, tiled):
        go(
            place,
            "prepare tiny",
            "extract tiny pixels",
            "extract tiny net",
            "manifest tiny",
            "train tiny-patchcore",
            "evaluate tiny-patchcore",
        )
        auroc[place.name] = json.loads((place / "metrics/tiny/patchcore.json").read_text())["mean"]["image_auroc"]["value"]
    assert auroc["tiled"] == 1.0 and auroc["whole"] < 0.8
