"""prepare writes one row per usable image, says what it left out, and writes the same bytes each time."""

import csv
import subprocess
import sys

import pytest

from stages import io, prepare
from stages.datasets import folder
from stages.datasets.samples import DataError, root_of
from tests.datasets.trees import Tree, mvtec_tree, write_params


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_image_has_a_row_that_leads_to_its_file(project):
    mvtec_tree(project / "raw").file("bottle/train/good/003.png")
    write_params(project, mine={"adapter": "mvtec", "source": "raw"})
    assert prepare.main("mine") == 0
    rows, about = io.read_table(project / "data/mine/samples.parquet"), io.read_json(project / "data/mine/dataset.json")
    root = root_of(project / "data/mine/dataset.json")
    assert len(rows) == 27
    for row in rows:
        path = root / row["image_path"]
        assert io.file_hash(path) == row["content_hash"] and (row["width"], row["height"]) == (96, 96) and len(row["dhash"]) == 32
    assert about["counts"] == {"bottle": {"test": {"anomalous": 4, "normal": 4}, "train": {"normal": 19}}}
    assert about["root"] == "raw" and about["masks"] is True and about["mask_threshold"] == 0
    assert [entry["path"] for entry in about["quarantined"]] == ["bottle/train/good/003.png"]
    assert "raw" in (project / "data/mine/images/README.txt").read_text()


def test_the_table_for_people_holds_the_same_and_can_be_read_back(project):
    mvtec_tree(project / "raw")
    write_params(project, mine={"adapter": "mvtec", "source": "raw"})
    prepare.main("mine")
    rows = io.read_table(project / "data/mine/samples.parquet")
    with (project / "data/mine/samples.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [{key: "" if row[key] is None else str(row[key]) for key in table[0]} for row in rows] == table
    (project / "raw/samples.csv").write_bytes((project / "data/mine/samples.csv").read_bytes())
    again = folder.read(project / "raw", project)
    assert [tuple(sample) for sample in again.samples] == [tuple(row[field] for field in again.samples[0]._fields) for row in rows]


def test_preparing_twice_writes_the_same_bytes(project):
    Tree(project / "raw").images("good/{}.png", 6)
    write_params(project, mine={"adapter": "folder", "source": "raw"})
    written = []
    for _ in range(2):
        prepare.main("mine")
        written.append({path.name: path.read_bytes() for path in (project / "data/mine").rglob("*") if path.is_file()})
    assert written[0] == written[1] and len(written[0]) == 4


def test_unusable_data_leaves_no_table(project):
    tree = Tree(project / "raw")
    tree.images("good/{}.png", 6)
    tree.file("good/7.png")
    write_params(project, mine={"adapter": "folder", "source": "raw"})
    with pytest.raises(DataError, match="E204"):
        prepare.main("mine")
    assert not list((project / "data/mine").glob("samples*"))


def test_the_verb_is_light_and_its_errors_are_one_line(project, root):
    (project / "raw/stuff").mkdir(parents=True)
    write_params(project, mine={"adapter": "folder", "source": "raw"})
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "stages.prepare", "mine"], capture_output=True, text=True)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1 and "E201" in said[0] and "Traceback" not in done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert loaded.isdisjoint({"torch", "pandas", "sklearn", "matplotlib", "scipy"})
