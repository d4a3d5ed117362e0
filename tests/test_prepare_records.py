"""The verbs prepare_records and manifest_records: media on disk, then a table, then lists; what goes in comes out."""

from pathlib import Path

import pytest

from stages import io, manifest_records, params, prepare_records
from stages.datasets.samples import DataError
from tests.record_projects import record_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(dataset: str) -> tuple[list[dict], dict, dict]:
    """samples.parquet, dataset.json and manifest.json after both verbs."""
    assert prepare_records.main(dataset) == manifest_records.main(dataset) == 0
    folder = Path("data", dataset)
    return io.read_table(folder / "samples.parquet"), io.read_json(folder / "dataset.json"), io.read_json(folder / "manifest.json")


def test_the_station_becomes_a_table_and_lists_with_unseen_shifts_in_test(project):
    record_project(project)
    rows, about, manifest = made("station")
    names = ["text", "image", "video", "audio", "series"]
    columns = ["record_id", "label", "fault", "group", "split", *(f"{name}_path" for name in names), *(f"{name}_hash" for name in names)]
    assert list(rows[0]) == columns and len(rows) == 60
    assert about["root"] == "data/station/media" and about["modalities"] == names and about["adapter"] == "station"
    for row in rows:
        there = [name for name in names if row[f"{name}_path"]]
        assert there and all(io.file_hash(Path(about["root"], row[f"{name}_path"])) == row[f"{name}_hash"] for name in there)
    assert about["counts"]["present"] == {name: sum(row[f"{name}_path"] is not None for row in rows) for name in names}
    assert 0.5 < about["about"]["oracle_auroc"]["population"]["image"] < about["about"]["oracle_auroc"]["population"]["all"] < 1
    samples = manifest["samples"]
    assert [list(sample) for sample in samples[:1]] == [["record_id", "split", "label", "group", "fault"]]
    assert {sample["record_id"]: (sample["label"], sample["group"], sample["fault"]) for sample in samples} == {
        row["record_id"]: (row["label"], row["group"], row["fault"]) for row in rows
    }
    shifts = {part: {sample["group"] for sample in samples if sample["split"] == part} for part in ("train", "val", "test")}
    assert [len(shifts[part]) for part in ("train", "val", "test")] == [7, 2, 3] and len(set.union(*shifts.values())) == 12
    assert all(number["normal"] and number["anomalous"] for number in manifest["counts"].values())
    assert manifest["rule"] == {"split_seed": 0, "val_fraction": 0.2, "test_fraction": 0.25}


def test_what_is_known_beside_the_media_is_columns_and_a_folder_may_stand_for_a_file(project, monkeypatch):
    from stages.datasets.record_adapters import RecordReading, RecordRow

    for number in range(24):
        (project / f"welds/{number}").mkdir(parents=True)
        (project / f"welds/{number}/a.png").write_bytes(bytes([number]))
    (project / "welds/23/a.png").unlink()
    rows = [
        RecordRow(f"w{at}", {"image": f"{at}"}, at % 2, "burr" * (at % 2), content={"image": f"{at:064x}"}, facts={"current_a": 150.0 + at, "steel": "S235"})
        for at in range(24)
    ]
    rows[3] = rows[3]._replace(facts={"current_a": 1.0})
    monkeypatch.setattr(prepare_records.record_adapters, "read", lambda *_, **__: RecordReading(project / "welds", ["image"], rows))
    record_project(project)
    assert prepare_records.main("station") == 0
    written = io.read_table(project / "data/station/samples.parquet")
    assert list(written[0])[-2:] == ["fact_current_a", "fact_steel"] and len(written) == 23
    by_id = {row["record_id"]: row for row in written}
    assert by_id["w2"]["fact_current_a"] == 152.0 and by_id["w3"]["fact_steel"] is None and by_id["w2"]["image_hash"] == f"{2:064x}"
    problems = io.read_json(project / "data/station/dataset.json")["problems"]
    assert [problem["code"] for problem in problems] == ["E421", "E422"]


def test_the_same_settings_give_the_same_bytes(project, monkeypatch):
    small = {"picture_size": 32, "film_size": 32, "frames": 4, "sound_seconds": 0.5, "sensor_rows": 40, "records": 24, "shifts": 6}
    one, other = project / "one", project / "other"
    for place in (one, other):
        record_project(place, small)
    written = []
    for place in (one, other):
        monkeypatch.chdir(place)
        made("station")
        written.append({path.relative_to(place): path.read_bytes() for path in sorted((place / "data").rglob("*")) if path.is_file()})
    assert written[0] == written[1] and len(written[0]) > 50


def test_the_split_of_the_data_set_is_kept(project):
    record_project(project, {"missing_not_at_random": 1.0})
    rows, _, manifest = made("station")
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert [sample["split"] for sample in manifest["samples"]] == [row["split"] for row in rows] and not manifest["leaks"]


def test_the_users_own_media_go_the_same_way(project, capsys):
    lines = ["record_id,label,group,image,text"]
    for at in range(40):
        image = project / "mine" / f"{at}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(f"picture {at // 2 if at < 4 else at}".encode())
        lines.append(f"part{at},{'scratch' if at % 3 == 0 else 'ok'},batch{at // 2},{at}.png,{'gone.txt' if at == 9 else ''}")
    (project / "mine" / "parts.csv").write_text("\n".join(lines))
    record_project(project, datasets={"mine": {"adapter": "media_folder", "source": "mine/parts.csv"}})
    rows, about, manifest = made("mine")
    assert about["root"] == "mine" and (project / "data/mine/media/README.txt").read_text() == "The files stay where they are: mine\n"
    assert about["counts"] == {"records": 40, "present": {"image": 40, "text": 0}, "files": 41, "lost": 1}
    assert "warning E420: files that are not there: 1 (gone.txt)" in capsys.readouterr().err
    assert {sample["label"] for sample in manifest["samples"]} == {0, 1} and len(rows) == 40


def test_what_cannot_be_prepared_is_one_line(project, capsys):
    record_project(project, datasets={"mine": {"adapter": "media_folder", "source": "nowhere"}})
    with pytest.raises(params.ParamsError, match=r"records\.datasets has no entry 'statoin'; did you mean 'station'"):
        prepare_records.main("statoin")
    with pytest.raises(DataError, match="E426 nowhere is not there"):
        prepare_records.main("mine")
    record_project(project, {"categories": ["a"]})
    with pytest.raises(params.ParamsError, match="station.categories: records have no categories"):
        prepare_records.main("station")
