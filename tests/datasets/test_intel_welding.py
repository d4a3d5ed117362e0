"""The adapter of the welding release, on small folders in its layout; every trap of the real one is planted and has to be named."""

import shutil

import pytest

from stages.datasets import record_adapters
from stages.datasets.intel_welding import CLASSES, CODES, class_name
from stages.datasets.record_checks import check
from stages.datasets.record_splits import Rule, split
from stages.datasets.samples import DataError
from stages.params import ParamsError
from stages.serving import record_check
from tests.datasets.weld_trees import arc_sound, log_rows, write_flac, write_log, write_tree


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_tree(root, [("Good", "00")] * 3 + [("Undercut", "03"), ("Crater_Cracks", "11"), ("Undercut", "03")], seconds=2.0, arc=(0.5, 1.5))
    return root


@pytest.fixture
def tree(clean, tmp_path):
    """A copy that a test may spoil, and the folder of its first weld."""
    shutil.copytree(clean, tmp_path / "tree")
    return tmp_path / "tree", sorted((tmp_path / "tree" / "s00").iterdir())[0]


def _read(root, **options):
    return record_adapters.read("intel_welding", root, root, options)


def _codes(root, **options):
    return {problem.code: problem.what for problem in _read(root, **options).problems}


def _manifest(root, change):
    path = root / "manifest.csv"
    path.write_text(change(path.read_text()))


def test_a_clean_release_gives_a_row_a_weld_with_its_setpoints_as_facts(clean):
    reading = _read(clean)
    checked = check(reading)
    assert len(checked.rows) == 12 and not checked.lost and set(_codes(clean)) == {"E447", "E448"}
    row = next(row for row in reading.rows if row.group == "s03")
    assert (row.label, row.fault, row.split) == (1, "undercut", None)
    assert row.facts == {"weld_type": "fillet", "thickness_mm": 7.0, "steel_type": "Fe410", "current_a": 183.0, "voltage_v": 24.5, "gas_bar": 1.8,
                         "robot_speed_cpm": 323.0, "session": "s03", "official_split": "train", "duration_s": 1.875}  # fmt: skip
    assert row.paths["image"].endswith("/images") and set(row.paths) == {"image", "video", "audio", "series"}
    assert {row.label for row in reading.rows if not row.fault} == {0}


def test_an_id_tells_nothing_of_the_class_and_stays_when_other_welds_go(clean, tree):
    root, _ = tree
    before = {row.record_id: row.paths["series"] for row in _read(clean).rows}
    assert all(part not in record_id for record_id, path in before.items() for part in path.split("/"))
    _manifest(root, lambda text: "\n".join(line for line in text.splitlines() if ",s00," not in line))
    assert {row.record_id: row.paths["series"] for row in _read(root).rows}.items() < before.items()


def test_the_hash_of_photographs_is_of_what_they_hold(tree):
    root, place = tree
    before = {row.record_id: row.content["image"] for row in _read(root).rows}
    (place / "images" / "view_0.jpg").rename(place / "images" / "another.jpg")
    assert {row.record_id: row.content["image"] for row in _read(root).rows} == before, "names do not count"
    shutil.copy(place / "images" / "view_1.jpg", place / "images" / "view_2.jpg")
    after = {row.record_id: row.content["image"] for row in _read(root).rows}
    assert sum(before[name] != after[name] for name in before) == 1


def test_spellings_of_the_manifest_do_not_matter(tree):
    root, _ = tree
    expected = _read(root).rows
    _manifest(root, lambda text: text.replace("CATEGORY,WELD_TYPE", " Category , weld_type ").replace("Crater_Cracks", "Crater Cracks"))
    assert _read(root).rows == expected
    _manifest(root, lambda text: text.replace("24.5", '"24,5"').replace(",s00/", ",").replace(",s01/", ",./s01\\").replace("Good,", "Good Weld,"))
    assert _read(root).rows == expected
    _manifest(root, lambda text: text.replace('"24,5"', "24.5").replace(",", ";").replace("24.5", "24,5").replace("1.8", "1,8"))
    assert _read(root).rows == expected


def test_several_folders_in_one_cell_are_several_welds(tree):
    root, _ = tree
    expected = [row.record_id for row in _read(root).rows]
    def joined(text):
        lines = text.splitlines()
        first, second = lines[1].split(","), lines[2].split(",")
        return "\n".join([lines[0], ",".join([*first[:10], f'"[\'{first[10]}\', \'{second[10]}\']"', first[11]]), *lines[3:]])
    _manifest(root, joined)
    assert [row.record_id for row in _read(root).rows] == expected


def test_files_that_are_missing_are_left_out_and_welds_without_photographs_go_on(tree):
    root, place = tree
    shutil.rmtree(place / "images")
    (place / f"{place.name}.flac").unlink()
    (root / "s01" / sorted(p.name for p in (root / "s01").iterdir())[0] / "images" / "view_3.jpg").unlink()
    reading = _read(root)
    assert [p.what.split(":")[0] for p in reading.problems if p.code == "E442"] == ["welds without photographs", "welds with fewer than 5 photographs"]
    checked = check(reading)
    assert "E420" in {problem.code for problem in checked.problems}
    weld = next(row for row in checked.rows if row.facts["session"] == "s00" and place.name in row.paths["series"])
    assert set(weld.paths) == {"video", "series"}
    assert "E442" not in _codes(root, views=4) or "fewer" not in _codes(root, views=4)["E442"]


def test_gaps_rates_lengths_and_cold_arcs_are_named(tree):
    root, place = tree
    others = sorted(path for session in ("s01", "s02", "s03") for path in (root / session).iterdir())
    rows = log_rows(2.0, (0.5, 1.5))
    rows[8:, 0] += 14
    write_log(place / f"{place.name}.csv", rows)
    write_flac(others[0] / f"{others[0].name}.flac", arc_sound(2.0, (0.5, 1.5), 0, 8000), 8000)
    write_flac(others[1] / f"{others[1].name}.flac", arc_sound(6.0, (0.5, 1.5), 0))
    write_log(others[2] / f"{others[2].name}.csv", log_rows(2.0, (9, 9)))
    (others[3] / f"{others[3].name}.avi").write_bytes(b"RIFF no film")
    found = _codes(root)
    assert place.name in found["E444"] and "14.1 s" in found["E444"]
    assert "8000" in found["E445"] and others[1].name in found["E446"] and "4.1 s" in found["E446"]
    assert others[2].name in found["E449"] and "1 good" in found["E449"]
    assert others[3].name in found["E443"]
    path = {problem.code: problem.path for problem in _read(root).problems}
    assert all((root / path[code]).exists() for code in ("E443", "E444", "E445", "E446", "E449"))
    assert set(_codes(root, open_media=False)) == {"E447", "E448"}


def test_a_category_that_contradicts_its_part_number_counts_and_is_named(tree):
    root, _ = tree
    _manifest(root, lambda text: text.replace("Crater_Cracks", "Overlap", 1).replace("Undercut", "Rust", 1))
    problems = [problem.what for problem in _read(root).problems if problem.code == "E441"]
    assert [what.split(":")[0] for what in problems] == [
        "welds of a class that the release does not have",
        "welds whose CATEGORY is not that of the code at the end of their part number",
        "codes of part numbers that stand for several classes",
    ]
    assert {"overlap", "rust"} <= {row.fault for row in _read(root).rows}


def test_a_weld_that_is_entered_wrong_does_not_hide_that_names_tell_the_class(tmp_path):
    write_tree(tmp_path, [("Good", "00")] * 6 + [("Undercut", "09")] * 6, seconds=1.0, arc=(0.25, 0.75), photos=1)
    _manifest(tmp_path, lambda text: text.replace("Undercut", "Good", 1))
    assert {"E441", "E447", "E448"} <= set(_codes(tmp_path, open_media=False))
    _manifest(tmp_path, lambda text: text.replace("Undercut", "Good", 6))
    assert "E448" not in _codes(tmp_path, open_media=False), "half of a code's welds say nothing of the others"


def test_a_list_that_nobody_knows_is_named(tree):
    root, _ = tree
    _manifest(root, lambda text: text.replace("TRAIN", "holdout", 1))
    assert "SPLIT says holdout" in _codes(root)["E440"]


def test_a_folder_with_the_name_of_a_picture_is_none(tree):
    root, place = tree
    (place / "images" / "a.jpg").mkdir()
    assert check(_read(root)).lost == 0 and "E442" not in _codes(root)


def test_the_official_split_is_kept_on_request_only_and_its_leaks_are_taken_out(tree):
    root, _ = tree
    def crossed(text):
        lines = text.splitlines()
        lines[2] = lines[2].replace("TRAIN", "TEST")
        lines[9:] = [line.replace("TRAIN", "Val") for line in lines[9:]]
        return "\n".join(lines)
    _manifest(root, crossed)
    assert {row.split for row in _read(root).rows} == {None}
    assert {row.facts["official_split"] for row in _read(root).rows} == {"train", "val", "test"}
    reading = _read(root, split="official")
    told = [problem.what for problem in reading.problems if problem.code == "E447"]
    assert "s00" in told[0] and "out of train" in told[0]
    drawn = split("welds", record_check._table(check(reading).rows, reading.modalities), Rule(0, 0.2, 0.2))
    assert [(leak["removed_from"], leak["shares_with"]) for leak in drawn.leaks] == [("train", "test")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("DIRECTORY", "FOLDER"), "E440 .*missing: directory"),
        (lambda text: text.replace("24.5", "many", 1), "E440 .*line 2 has VOLTAGE_V 'many'"),
        (lambda text: text.replace("24.5", "inf", 1), "E440 .*line 2 has VOLTAGE_V 'inf'"),
        (lambda text: text.replace("Good,", ",", 1), "E440 .*line 2 lacks CATEGORY"),
        (lambda text: text + "Good,fillet,7\n", "E440 .*line 14 lacks CATEGORY, DIRECTORY or SUBDIRS"),
        (lambda text: text.replace("fillet", "f" * 200_000, 1), "E440 .*cannot be used: field larger"),
        (lambda text: text.replace(",s00,s00/", ",../else,../else/"), "E440 .*outside"),
        (lambda text: text.replace(",s00/", f",s00/{'p' * 251}", 1), "E440 .*line 2 .*too long"),
        (lambda text: f"{text}{text.splitlines()[1]}\n", "E440 .*twice"),
        (lambda text: text.splitlines()[0], "E440 .*lists no weld"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_by_line(tree, change, said):
    root, _ = tree
    _manifest(root, change)
    with pytest.raises(DataError, match=said):
        _read(root)


def test_the_check_of_the_command_line_finds_the_layout_by_its_manifest(tree):
    root, _ = tree
    found = record_check.examine(root)
    assert found.adapter == "intel_welding" and found.modalities == {"image": 12, "video": 12, "audio": 12, "series": 12}
    assert {"E447", "E448"} <= {problem.code for problem in found.problems} and "undercut 4" in record_check.render(found)
    (root / "manifest.csv").write_text("record_id,label\n")
    assert record_check.adapter_of(root) == "media_folder"
    with pytest.raises(DataError, match=r"E440 .* holds 0 manifest.csv"):
        _read(root / "s00")
    with pytest.raises(ParamsError, match="view is not a known key; did you mean 'views'"):
        _read(root, view=3)


def test_the_names_of_classes_are_the_twelve_of_the_release():
    assert len(CLASSES) == len(set(CLASSES)) == 12 and set(CODES.values()) < set(CLASSES)
    assert [class_name(name) for name in ("Good", "Good Weld", "Porosity_w_Excessive_Penetration")] == ["good", "good", CLASSES[7]]
