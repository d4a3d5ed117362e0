import shutil

import pytest

from stages import io
from stages.datasets.weld_labels import Place, counted, of_folder, of_prepared, render
from stages.errors import Missing
from tests.datasets.weld_trees import write_tree

EVEN = [Place(kind, f"{kind}-{split}", split) for kind in ("porosity", "good") for split in ("train", "val", "test") for _ in range(2)]


def test_classes_are_counted_by_list_and_session_good_first():
    found = counted(EVEN)
    assert list(found.classes) == ["good", "porosity"] and found.classes["good"] == {"train": 2, "val": 2, "test": 2}
    assert found.sessions == {"good": 3, "porosity": 3} and found.welds == 12 and found.problems == [] and found.ok
    lines = render(found).splitlines()
    assert lines[0] == "12 welds of 2 classes" and lines[1].split() == ["class", "welds", "sessions", "train", "val", "test"]
    assert lines[3].split() == ["porosity", "6", "3", "2", "2", "2"] and lines[-1] == "share of defects: train 50%, val 50%, test 50%"


def test_a_class_that_train_lacks_is_an_error_but_in_the_official_split():
    places = [place for place in EVEN if (place.kind, place.split) != ("porosity", "train")]
    drawn, official = counted(places), counted(places, official=True)
    assert [(one.code, one.severity) for one in drawn.problems] == [("E450", "warning"), ("E451", "error")] and not drawn.ok
    assert [(one.code, one.severity) for one in official.problems] == [("E450", "warning"), ("E451", "warning")] and official.ok
    assert "train has no weld of porosity" in render(drawn)


def test_a_session_of_several_classes_is_named():
    found = counted([*EVEN, Place("good", "porosity-train", "train")])
    assert found.session_count == 6 and sum(found.sessions.values()) == 7 and "all 13 6 " in " ".join(render(found).split())
    assert found.mixed == ["porosity-train"] and [one.code for one in found.problems] == ["E452"]


def test_a_folder_and_a_prepared_data_set_are_counted(tmp_path):
    (tmp_path / "w").mkdir()
    write_tree(tmp_path / "w", [("Good", "00"), ("Crater_Cracks", "11")], seconds=1.0, photos=1)
    found = of_folder(tmp_path / "w")
    assert found.classes == {"good": {"train": 2}, "crater_cracks": {"train": 2}} and found.as_json()["ok"]
    shutil.rmtree(tmp_path / "w")
    with pytest.raises(Missing):
        of_prepared("weld", tmp_path)
    rows = [{"fault": fault, "label": int(bool(fault)), "group": f"s{fault}", "split": "train"} for fault in ("", "overlap")]
    rows.append({"fault": None, "label": -1, "group": "new", "split": "unlabelled"})
    io.write_json(tmp_path / "data" / "weld" / "manifest.json", {"samples": rows})
    assert list(of_prepared("weld", tmp_path).classes) == ["good", "overlap"]
