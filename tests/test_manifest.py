"""The manifest holds three lists that share no picture, found from the pixels themselves."""

import io as memory

import pytest
from PIL import Image

from stages import io, manifest, prepare
from tests.datasets.trees import mvtec_tree, texture, write_params


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, mine={"adapter": "mvtec", "source": "raw"})
    return tmp_path


def _manifest(project):
    prepare.main("mine")
    manifest.main("mine")
    return io.read_json(project / "data/mine/manifest.json")


def test_planted_copies_of_test_images_are_left_out_of_train_and_listed(project):
    tree = mvtec_tree(project / "raw")
    tree.image("bottle/test/good/900.png", texture(900, 192))
    tree.image("bottle/test/good/901.png", texture(901, 192))
    tree.image("bottle/train/good/900.png", texture(900, 192))
    file = memory.BytesIO()
    Image.fromarray(texture(901, 192)).resize((150, 150)).save(file, "JPEG", quality=85)
    tree.file("bottle/train/good/copy.jpg", file.getvalue())
    written = _manifest(project)
    assert [(leak["sample_id"], leak["reason"], leak["of"]) for leak in written["leaks"]] == [
        ("bottle/train/good/900", "copy", "bottle/test/good/900"),
        ("bottle/train/good/copy", "near copy", "bottle/test/good/901"),
    ]
    assert written["duplicates"] == {"exact": 1, "near": 1}
    names = {sample["sample_id"] for sample in written["samples"]}
    assert names.isdisjoint({"bottle/train/good/900", "bottle/train/good/copy"}) and "bottle/test/good/901" in names


def test_the_counts_follow_the_rule_that_is_written_beside_them(project):
    mvtec_tree(project / "raw")
    written = _manifest(project)
    assert written["counts"] == {"bottle": {"test": {"anomalous": 4, "normal": 4}, "train": {"normal": 17}, "val": {"normal": 3}}}
    assert (written["rule"]["val_fraction"], written["rule"]["split_seed"]) == (0.15, 0)
    assert [row["sample_id"] for row in written["samples"] if row["mask"]] == [f"bottle/test/crack/{number:03}" for number in range(4)]


def test_the_same_samples_give_the_same_bytes_and_another_encoder_changes_none(project):
    mvtec_tree(project / "raw")
    _manifest(project)
    before = (project / "data/mine/manifest.json").read_bytes()
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("\nencoders:\n", "\nencoders:\n  other:\n    kind: pixels\n    image_size: 64\n"))
    manifest.main("mine")
    assert (project / "data/mine/manifest.json").read_bytes() == before


def test_the_manifest_needs_no_torch(project):
    import subprocess
    import sys

    mvtec_tree(project / "raw")
    prepare.main("mine")
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "stages.manifest", "mine"], capture_output=True, text=True)
    assert done.returncode == 0
    assert not any(line.rsplit("|", 1)[-1].strip() in ("torch", "scipy", "sklearn") for line in done.stderr.splitlines())
