"""The verbs prepare_series and manifest_series: recordings on disk, then segments; what goes in comes out."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from ruamel.yaml import YAML

from stages import io, manifest_series, prepare_series
from stages.datasets import segments, series_splits, server_metrics
from stages.datasets.recordings import runs_of
from stages.datasets.samples import DataError
from stages.params import ParamsError


@pytest.fixture
def project(tmp_path, monkeypatch, root):
    """A folder with the project's params.yaml but for its data sets of signals: call it to write them."""
    monkeypatch.chdir(tmp_path)
    yaml = YAML(typ="safe")
    whole = yaml.load(root / "params.yaml")

    def write(**datasets: dict) -> None:
        protocol = whole["series"]["protocol"] | {"train_fraction": 0.5, "val_fraction": 0.1}
        series = whole["series"] | {"datasets": datasets, "runs": {}, "protocol": protocol}
        yaml.dump(whole | {"series": series}, tmp_path / "params.yaml")

    return write


def made(dataset: str) -> tuple[dict, dict]:
    """recordings.json and manifest.json, after both verbs."""
    assert prepare_series.main(dataset) == manifest_series.main(dataset) == 0
    return io.read_json(Path("data", dataset, "recordings.json")), io.read_json(Path("data", dataset, "manifest.json"))


GENERATED = {"adapter": "server_metrics", "source": ".", "steps": 3000, "interval_scale": 0.2}


def test_what_an_adapter_says_comes_out_of_the_segments(project, tmp_path):
    project(tiny=GENERATED)
    recordings, manifest = made("tiny")
    told = {recording.category: recording for recording in server_metrics.read(tmp_path, steps=3000, interval_scale=0.2)}
    assert segments.categories_of("tiny") == list(told) == ["easy", "medium", "hard"]
    for category, recording in told.items():
        assert segments.variables_of("tiny", category) == list(recording.variables)
        assert segments.regions_of("tiny", category) == {f"{category}/000": list(recording.regions)}
        for split in series_splits.SPLITS:
            for segment in segments.open_segments("tiny", category, split):
                place = slice(segment.start, segment.start + segment.steps)
                assert segment.values.dtype == np.float32
                assert np.array_equal(segment.values, recording.values[place], equal_nan=True)
                assert np.array_equal(segment.label, recording.label[place])
    row = recordings["recordings"][0]
    assert row["steps"] == 3000 and row["missing"] == int(np.isnan(told["easy"].values).sum())
    assert recordings["about"]["name"] == "server" and row["about"]["gain"] == 1.0
    assert sum(split["steps"] for split in manifest["counts"]["easy"].values()) + sum(
        part["stop"] - part["start"] for part in manifest["excluded"] if part["recording_id"] == "easy/000"
    ) == pytest.approx(3000)


def test_counts_are_of_the_steps_and_regions_in_the_segments(project):
    project(tiny=GENERATED)
    _, manifest = made("tiny")
    for category, splits in manifest["counts"].items():
        for split, number in splits.items():
            opened = segments.open_segments("tiny", category, split)
            assert number == {
                "segments": len(opened),
                "steps": sum(segment.steps for segment in opened),
                "anomalous": sum(int(segment.label.sum()) for segment in opened),
                "regions": sum(len(runs_of(segment.label)) for segment in opened),
            }


def test_the_same_source_gives_the_same_bytes(project, tmp_path):
    project(tiny=GENERATED, again=GENERATED)
    made("tiny"), made("again")
    for path in sorted((tmp_path / "data/tiny/recordings").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "data/again" / path.relative_to(tmp_path / "data/tiny")).read_bytes()
    assert segments.fingerprint("tiny", "easy") == segments.fingerprint("again", "easy") != segments.fingerprint("tiny", "hard")


def rig(root, name: str, rows: int, columns: str = "time,flow,heat", start: int = 0) -> None:
    """A file below rigs/: the first column counts up, the others go round from `start`."""
    path = root / "rigs" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{row},{(row * 7 + start) % 11},{(row * 5 + start) % 13}" for row in range(rows)]
    path.write_text("\n".join([columns, *lines]) + "\n")


def test_a_recording_without_labels_has_none_on_disk_and_none_in_its_segments(project, tmp_path):
    rig(tmp_path, "a/x", 40)
    project(mine={"adapter": "signal_folder", "source": "rigs", "time": "time"})
    recordings, _ = made("mine")
    table = pyarrow.parquet.read_table(tmp_path / "data/mine/recordings/a/x.parquet")
    assert table.schema.names == ["time_s", "flow", "heat"] and not recordings["recordings"][0]["labelled"]
    assert all(segment.label is None for segment in segments.open_segments("mine", "a", "train"))


def test_only_the_categories_that_are_asked_for_are_prepared(project):
    project(tiny=GENERATED | {"categories": ["hard"]}, wrong=GENERATED | {"categories": ["hrd"]})
    made("tiny")
    assert segments.categories_of("tiny") == ["hard"]
    with pytest.raises(ParamsError, match="did you mean 'hard'"):
        prepare_series.main("wrong")


def test_recordings_of_a_category_must_have_the_same_variables(project, tmp_path):
    rig(tmp_path, "a/x", 40)
    rig(tmp_path, "a/y", 40, "time,flow,speed")
    project(mine={"adapter": "signal_folder", "source": "rigs"})
    with pytest.raises(DataError, match=r"a/y has the variables flow, speed, but a/x flow, heat"):
        prepare_series.main("mine")


def test_two_files_of_one_name_are_refused(project, tmp_path):
    rig(tmp_path, "a/x", 40)
    (tmp_path / "rigs/a/x.txt").write_bytes((tmp_path / "rigs/a/x.csv").read_bytes())
    project(mine={"adapter": "signal_folder", "source": "rigs"})
    with pytest.raises(DataError, match="two recordings are called a/x"):
        prepare_series.main("mine")


def test_a_training_file_that_is_also_a_test_file_is_left_out_of_train(project, tmp_path, capsys):
    for name in ("train/x", "train/y", "test/z"):
        rig(tmp_path, f"a/{name}", 40, start=3 if name.endswith("y") else 0)
    project(mine={"adapter": "signal_folder", "source": "rigs"})
    _, manifest = made("mine")
    assert [part["recording_id"] for part in manifest["excluded"]] == ["a/train-x"]
    assert {segment.recording for segment in segments.open_segments("mine", "a", "train")} == {"a/train-y"}
    assert "identical to a/test-z" in capsys.readouterr().err


def test_problems_are_written_and_told(project, tmp_path, capsys):
    rig(tmp_path, "a/x", 40)
    path = tmp_path / "rigs/a/x.csv"
    lines = path.read_text().splitlines()
    lines[5] = ",".join([lines[5].split(",")[0], "broken", ""])
    path.write_text("\n".join(lines) + "\n")
    project(mine={"adapter": "signal_folder", "source": "rigs", "time": ""})
    recordings, _ = made("mine")
    codes = [problem["code"] for problem in recordings["problems"]]
    assert codes[:2] == ["E317", "E315"] and recordings["recordings"][0]["missing"] == 2
    assert "problems" not in recordings["about"] and "broken" in capsys.readouterr().err


def test_a_variable_with_the_name_of_a_column_of_ours_is_refused(project, tmp_path):
    rig(tmp_path, "a/x", 40, "clock,flow,time_s")
    project(mine={"adapter": "signal_folder", "source": "rigs", "time": "clock"})
    with pytest.raises(DataError, match="'time_s', a word that is taken"):
        prepare_series.main("mine")


def test_a_damaged_recording_says_so(project, tmp_path):
    project(tiny=GENERATED)
    made("tiny")
    path = tmp_path / "data/tiny/recordings/easy/000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(io.DamagedFile):
        segments.open_segments("tiny", "easy", "train")
