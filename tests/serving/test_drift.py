"""`assay drift`: what was planted is found and named first, the same world is steady, what chance gives is no alarm, and settings are counted."""

import csv
import json

import numpy as np
import pytest
import torch

from stages import io
from stages.datasets.record_files import write_record, written
from stages.datasets.record_store import StoreWriter
from stages.datasets.records import packed
from stages.metrics.drift import MOVED, compare
from stages.serving.drift_sides import Side
from stages.serving.drift_statistics import _Axes, _held_out, statistics
from tests.fusion.synthetic import samples
from tests.serving.facts_project import SENSORS, WIDTHS, facts_of, judged, moved


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return judged(tmp_path_factory.mktemp("facts"))


@pytest.fixture
def here(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    return project


def new_files(folder, change=lambda record: record, count=60, **facts):
    for record in samples(1, count, WIDTHS, missing=0.2):
        content = written(change(record)) | ({"facts": facts} if facts else {})
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / f"{record.record_id}.pt")
    return str(folder)


def said(assay, *arguments):
    code, out, err = assay("drift", *arguments, "--json", "--permutations", "199")
    assert code in (0, 1) and out, err
    return json.loads(out)


def test_another_split_of_the_same_world_has_not_moved(assay, here):
    found = said(assay, "--against", "test")
    assert found["verdict"] != MOVED and found["settings"]["outside"] == []
    names = {row["statistic"] for row in found["statistics"]}
    assert {f"{sensor} {what}" for sensor in SENSORS for what in ("mean", "spread")} <= names
    assert {"image axis 1", "image length", "image distance", "image missing", "current_a", "steel_type = BSK46"} <= names


def test_a_sensor_that_was_shifted_is_named_first_and_in_its_own_units(assay, here, tmp_path):
    found = said(assay, "--new", new_files(tmp_path / "shift", lambda record: moved(record, "feed", 8.0)))
    first, second = found["statistics"][:2]
    assert (first["statistic"], first["verdict"]) == ("feed mean", MOVED) and second["verdict"] != MOVED
    same = said(assay, "--new", new_files(tmp_path / "same"))
    assert same["verdict"] != MOVED and same["reference"] == found["reference"]
    (before,) = [row for row in same["statistics"] if row["statistic"] == "feed mean"]
    assert first["was"] == before["was"] and first["is"] - before["is"] == pytest.approx(8.0, abs=1e-4) and first["psi"] > first["psi_by_chance"]
    code, out, _ = assay("drift", "--new", str(tmp_path / "shift"))
    assert code == 0 and out.index("moved   feed mean") < out.index("steady  ")


def test_exit_codes_and_files(assay, here, tmp_path):
    shifted = new_files(tmp_path / "shift", lambda record: moved(record, "feed", 8.0))
    assert assay("drift", "--new", shifted, "--fail-on-drift")[0] == 1
    code, out, _ = assay("drift", "--new", new_files(tmp_path / "same"), "--fail-on-drift", "--out", str(tmp_path / "out"))
    assert code == 0 and "drift.json, drift.csv" in out
    with (tmp_path / "out/drift.csv").open() as file:
        table = list(csv.DictReader(file))
    stored = io.read_json(tmp_path / "out/drift.json")["statistics"]
    assert [row["statistic"] for row in table] == [row["statistic"] for row in stored] and float(table[0]["psi"]) == stored[0]["psi"]


def test_a_packed_store_says_what_its_files_say(assay, here, tmp_path):
    files = said(assay, "--new", new_files(tmp_path / "files"))
    writer = StoreWriter(tmp_path / "store", None)
    for record in sorted(samples(1, 60, WIDTHS, missing=0.2), key=lambda one: one.record_id):
        writer.add(record)
    writer.close({})
    assert said(assay, "--new", str(tmp_path / "store"))["statistics"] == files["statistics"]


def test_a_medium_that_is_gone_is_named(assay, here, tmp_path):
    def blind(record):
        return record._replace(modalities={name: one for name, one in record.modalities.items() if name != "image"} or record.modalities)

    first = said(assay, "--new", new_files(tmp_path / "blind", blind))["statistics"][0]
    assert (first["statistic"], first["verdict"], first["share"]) == ("image missing", MOVED, True) and first["is"] > 0.8


def test_settings_that_training_never_had_are_counted_and_fail_the_gate(assay, here, tmp_path):
    folder = new_files(tmp_path / "hot", current_a=230.0, steel_type="FE410")
    found = said(assay, "--new", folder, "--fail-on-drift")
    assert found["settings"]["outside"] == [
        {"fact": "current_a", "records": 60, "of": 60, "values": {"least": 230.0, "most": 230.0}, "seen": {"least": 180.0, "most": 190.0}}
    ]
    code, out, _ = assay("drift", "--new", folder, "--fail-on-drift")
    assert code == 1 and "outside what was seen: current_a is 230 in 60 of 60 records; in training it was 180 to 190" in out


def test_one_setting_that_was_never_seen_fails_the_gate_though_nothing_moved(assay, here, tmp_path):
    folder = new_files(tmp_path / "one")
    for number, path in enumerate(sorted((tmp_path / "one").glob("*.pt"))):
        facts = facts_of(number) | ({"current_a": 230.0} if number == 0 else {})
        torch.save(torch.load(path, weights_only=True) | {"facts": facts}, path)
    assert said(assay, "--new", folder)["verdict"] != MOVED
    assert assay("drift", "--new", folder)[0] == 0 and assay("drift", "--new", folder, "--fail-on-drift")[0] == 1


def test_a_model_brings_its_scores_beside_validation_and_its_own_range(assay, here):
    found = said(assay, "--against", "test", "--model", "cross-attention")
    (score,) = [row for row in found["statistics"] if row["of"] == "scores"]
    rows = io.read_table(here / "metrics/weld/telling/cross-attention/predictions.parquet")
    for key, split in (("was", "val"), ("is", "test")):
        stored = [row["score"] for row in rows if row["split"] == split and row["seed"] == 0]
        assert score[key] == pytest.approx(np.median(stored), abs=1e-5) and score[f"records_{key}"] == len(stored)
    assert found["model"]["model_id"] == "weld/telling/cross-attention/seed0" and found["settings"]["seen"]["current_a"]["most"] == 190.0
    code, _, err = assay("drift", "--against", "test", "--model", "setpoint-only")
    assert code == 1 and "which are controls" in err


def test_a_model_of_before_says_that_it_does_not_know(assay, here):
    path = here / "models/weld/telling/cross-attention/seed0/config.json"
    before = path.read_text()
    io.write_json(path, {name: value for name, value in json.loads(before).items() if name != "settings"})
    try:
        code, out, _ = assay("drift", "--against", "test", "--model", "cross-attention")
        found = said(assay, "--against", "test", "--model", "cross-attention")
    finally:
        path.write_text(before)
    assert code == 0 and "was fitted before ranges were kept" in out and found["settings"] == {"seen": None, "records": 45, "outside": []}


def test_normal_ones_alone_are_compared_with_normal_ones(assay, here):
    rows = io.read_json(here / "data/weld/manifest.json")["samples"]
    found = said(assay, "--against", "test", "--normal-alone")
    for side, split in (("reference", "train"), ("new", "test")):
        assert found[side]["records"] == sum(row["split"] == split and row["label"] == 0 for row in rows)


def test_what_cannot_be_compared_is_one_line(assay, here, tmp_path):
    write_record(tmp_path / "wide/one.pt", samples(1, 1, {"image": 5})[0])
    (tmp_path / "empty").mkdir()
    for arguments, line in (
        ((), "either --against test (or val), or --new FOLDER"),
        (("--against", "test", "--new", "x"), "either --against test (or val), or --new FOLDER"),
        (("--against", "train"), "against themselves"),
        (("--against", "tset"), "must be one of train, val, test, got 'tset'"),
        (("--new", str(tmp_path / "gone")), "gone is not here"),
        (("--new", str(tmp_path / "wide")), "image has width 5, in weld it has 12"),
        (("--against", "test", "--dataset", "wedl"), "did you mean 'weld'"),
    ):
        code, _, err = assay("drift", *arguments)
        assert code == 1 and line in err and err.count("\n") == 1, err


def test_few_sessions_can_call_nothing_moved(assay, here, tmp_path):
    """Of 31 groups one is new: no p below 1/31; with none but two groups in all, none below 1/2."""
    record = moved(samples(1, 1, WIDTHS, missing=0)[0], "feed", 80.0)
    write_record(tmp_path / "one/a.pt", record)
    found = said(assay, "--new", str(tmp_path / "one"))
    assert found["least_p"] == pytest.approx(1 / 31) and found["statistics"][0]["p_adjusted"] >= 1 / 31
    assert "few: only large shifts" in assay("drift", "--new", str(tmp_path / "one"))[1]


def test_new_records_that_name_no_session_are_told_so(assay, here, tmp_path):
    """Each would count as a session of its own, and what a session shares would look like drift."""
    nameless = new_files(tmp_path / "nameless", lambda record: record._replace(group=""), count=12)
    assert "the new records name no session" in said(assay, "--new", nameless)["new"]["notes"][0]
    assert "  the new records name no session" in assay("drift", "--new", nameless)[1]
    assert said(assay, "--new", new_files(tmp_path / "named", count=12))["new"]["notes"] == []


def test_training_records_are_as_far_from_the_others_as_new_ones_are():
    """Measured by axes that they themselves were fitted to, they would be nearer: at 60 records and 10 axes by a tenth or more."""
    draw = np.random.default_rng(0)
    train, new = draw.standard_normal((60, 40)), draw.standard_normal((2000, 40))
    fit = _Axes(train, 10)
    assert np.median(fit.distance(train)) > 1.1 * np.median(fit.distance(new))  # along axes chosen for its variance, deviation 1 by construction
    assert np.median(_held_out(train, np.arange(60), 10)) == pytest.approx(np.median(fit.distance(new)), rel=0.1)


def side(records, group):
    return Side("here", packed(records, WIDTHS), group, [{} for _ in records], {}, 0)


def of_one_world(seed, shift=0.0):
    """30 + 15 sessions of 3 records that share a part of every number; with `shift` the new pictures move along a tenth of their numbers."""
    made, draw = samples(seed, 135, WIDTHS, missing=0.2, anomalous=0.3), np.random.default_rng(seed)
    effect = {name: draw.standard_normal((45, width)) for name, width in WIDTHS.items()}
    records = []
    for number, record in enumerate(made):
        own = {name: one._replace(values=one.values + torch.from_numpy(effect[name][number // 3]).float()) for name, one in record.modalities.items()}
        if shift and number >= 90 and "image" in own:
            own["image"].values[:, 0] += shift
        records.append(record._replace(modalities=own))
    group = [f"s{number // 3}" for number in range(135)]
    about = {"image": {"modalities": {"image": 12}, "entry": {"kind": "views"}}}
    about["series"] = {"modalities": {"series": 6}, "entry": {"kind": "sensor_steps", "nominal": SENSORS}}
    found = statistics(side(records[:90], group[:90]), side(records[90:], group[90:]), about, [])
    return {one.name: row for one, row in zip(found, compare([one.values for one in found], np.arange(135) >= 90, group, 199), strict=True)}


def test_of_one_world_the_whole_of_the_statistics_alarms_no_more_often_than_it_says():
    """Axes and distances are fitted to one side alone; 60 worlds: 9 alarms are past the 99.7 % point of a binomial of 5 %."""
    assert sum(any(row.p_adjusted <= 0.05 for row in of_one_world(seed).values()) for seed in range(60)) <= 9


def test_pictures_that_look_otherwise_are_found_by_their_distance_or_axes():
    found = of_one_world(3, shift=9.0)
    assert {name.split()[0] for name, row in found.items() if row.verdict == MOVED} == {"image"}


def test_windows_give_mean_and_spread_of_each_variable_in_its_units():
    """Two patches of two variables, six statistics and one frequency each: mean 1 and 3 of speed in units of 200 around 1100."""
    from stages.datasets.records import Record, Tokens

    patch = [[1, 0.5, 0, 0, 0, 0, 0, -1, 0.1, 0, 0, 0, 0, 0], [3, 0.7, 0, 0, 0, 0, 0, -3, 0.3, 0, 0, 0, 0, 0]]
    records = [Record(name, {"series": Tokens(torch.tensor(patch) * by, torch.zeros(2))}) for name, by in (("a", 1.0), ("b", 0.0))]
    sides = [Side("here", packed([one], {"series": 14}), ["g"], [{}], {}, 0) for one in records]
    entry = {"kind": "windows", "frequencies": 1, "nominal": {"speed": [1100, 200], "force": [150, 60]}}
    found = {one.name: one.values.tolist() for one in statistics(*sides, {"series": {"modalities": {"series": 14}, "entry": entry}}, [])}
    assert found == {
        "speed mean": [pytest.approx(1500), 1100],
        "speed spread": [pytest.approx(120), 0],
        "force mean": [pytest.approx(30), 150],
        "force spread": [pytest.approx(12), 0],
    }
