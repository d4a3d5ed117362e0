"""The generated station: what is known of it by construction, and that its media are real files which say what the table of evidence says."""

from pathlib import Path

import numpy as np
import pytest

from stages import io
from stages.datasets import media, station
from stages.datasets.records import MODALITIES
from stages.datasets.samples import DataError
from stages.datasets.station_media import evidence, film, note, picture, process, sensors, sound
from stages.datasets.station_media.evidence import KINDS

TINY = {"records": 60, "shifts": 12, "picture_size": 48, "film_size": 48, "frames": 4, "sound_seconds": 0.5, "sensor_rows": 60}
RATE = dict.fromkeys(MODALITIES, 0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("station") / "media"
    folder.mkdir()
    return station.read_records(folder, folder, **TINY)


def planned(**changed) -> station.Plan:
    settings = {"seed": 0, "records": 480, "shifts": 24, "anomalous": 0.4, "preset": "complementary", "rate": RATE, "by_design": True}
    return station.plan(**(settings | {"not_at_random": 0.0, "confound": 0.0} | changed))


def scene(trace: dict[str, float], number: int = 0, programme: int = 0, level: dict[str, int] | None = None) -> process.Scene:
    shift = process.draw_shifts(0, 6)[number % 6]
    usual = dict.fromkeys(KINDS, 0.4)
    return process.Scene(0, number, shift, programme, 0.5, 0.3, 0.4, usual | trace, dict.fromkeys(KINDS, 0) | (level or {}))


@pytest.mark.parametrize("preset", ["complementary", "faint"])
def test_all_media_together_know_more_than_the_best_of_them(preset):
    oracle = evidence.population_auroc(preset)
    assert oracle["all"] > max(oracle[name] for name in MODALITIES) + 0.15
    assert all(0.52 < oracle[name] < 0.8 for name in MODALITIES)


def test_where_one_medium_sees_all_the_others_add_nothing():
    oracle = evidence.population_auroc("camera")
    assert oracle["all"] == oracle["image"] > 0.95
    assert all(oracle[name] == 0.5 for name in MODALITIES if name != "image")


def test_the_likelihood_ratio_is_that_of_the_densities_it_was_drawn_from():
    """Against scipy.stats: sums of normal log densities, and for notes the probabilities of the three levels."""
    from scipy.stats import norm

    visible = evidence.visibility("complementary")
    x = evidence.draw_evidence(np.array([-1, 0, 7, 3]), np.array([0, 1, 2, 0]), visible, np.random.default_rng(0))
    ratios = evidence.log_ratios(x, visible)
    text, borders = MODALITIES.index("text"), np.array([-np.inf, *evidence.MENTIONS, np.inf])

    def log_density(record, modality: int, kind: int | None, grade: float) -> float:
        mean = np.zeros(len(KINDS))
        if kind is not None:
            mean[kind] = grade * visible[kind, modality]
        if modality != text:
            return norm.logpdf(record[:, modality], mean).sum()
        level = evidence.mention(record[:, text])
        return np.log(norm.cdf(borders[level + 1] - mean) - norm.cdf(borders[level] - mean)).sum()

    def expected(record, modalities) -> float:
        sound = sum(log_density(record, at, None, 0) for at in modalities)
        bad = [sum(log_density(record, at, kind, grade) for at in modalities) for kind in range(len(KINDS)) for grade in evidence.GRADES]
        return np.log(np.mean(np.exp(np.array(bad) - sound)))

    for at, record in enumerate(x):
        for place, name in enumerate(MODALITIES):
            assert ratios[name][at] == pytest.approx(expected(record, [place]), abs=1e-9)
        assert ratios["all"][at] == pytest.approx(expected(record, range(5)), abs=1e-9)


def test_the_ratio_of_a_record_without_a_medium_is_that_of_the_others():
    visible = evidence.visibility("complementary")
    x = evidence.draw_evidence(np.array([1, -1]), np.array([2, 0]), visible, np.random.default_rng(1))
    present = np.ones((2, 5), bool)
    present[:, [0, 2, 3, 4]] = False
    ratios = evidence.log_ratios(x, visible, present)
    assert np.array_equal(ratios["all"], ratios["image"]) and (ratios["audio"] == 0).all()


def test_every_fault_is_hidden_from_some_medium_and_every_medium_is_blind_to_some_fault():
    visible = evidence.visibility("complementary")
    assert (visible.max(1) >= 0.8).all() and ((visible == 0).sum(1) >= 1).all() and ((visible == 0).sum(0) >= 2).all()


def test_files_are_what_they_are_called(made):
    seen = set()
    for row in made.rows:
        for name, path in row.paths.items():
            content = media.READERS[name](made.root / path) if name not in ("video", "audio") else None
            if name == "image":
                assert content.shape == (48, 48, 3) and content.std() > 20
            elif name == "video":
                clip = media.read_video(made.root / path)
                assert clip.frames.shape == (4, 48, 48, 3) and np.ptp(clip.frames, 0).max() > 60
            elif name == "audio":
                heard = media.read_audio(made.root / path, sound.RATE)
                assert len(heard.samples) == 8000 and 0.01 < heard.samples.std() < 0.6
            elif name == "series":
                assert content.variables == sensors.CHANNELS and content.values.shape == (60, 6) and np.isfinite(content.values).all()
            else:
                assert 2 < len(content) < 400
            seen.add(name)
    assert seen == set(MODALITIES)


def test_the_table_says_who_is_missing_and_the_oracle_lies_beside_the_media(made):
    files = {path.relative_to(made.root).as_posix() for path in made.root.rglob("*") if path.is_file()}
    assert files == {path for row in made.rows for path in row.paths.values()} | {station.ORACLE}
    rows = io.read_table(made.root / station.ORACLE)
    assert [row["record_id"] for row in rows] == [row.record_id for row in made.rows]
    oracle = made.about["oracle_auroc"]
    label = np.array([row["label"] for row in rows])
    assert evidence.auroc(np.array([row["log_ratio_all"] for row in rows]), label) == pytest.approx(oracle["records"]["all"], abs=1e-6)
    assert len({row.group for row in made.rows}) == 12 and all(row.split is None for row in made.rows)
    assert {row.fault for row in made.rows if row.label} == set(KINDS) and all(not row.fault for row in made.rows if not row.label)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(made, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    again.mkdir(), other.mkdir()
    station.read_records(again, again, **TINY)
    paths = [path.relative_to(made.root) for path in sorted(made.root.rglob("*")) if path.is_file()]
    assert all((made.root / path).read_bytes() == (again / path).read_bytes() for path in paths)
    changed = station.read_records(other, other, seed=1, **TINY | {"records": 24})
    assert [row.label for row in changed.rows] != [row.label for row in made.rows][:24]


def test_what_is_missing_and_what_is_confounded_leaves_labels_shifts_and_evidence_alone():
    usual = planned()
    for changed in ({"rate": dict.fromkeys(MODALITIES, 0.4)}, {"by_design": False}, {"not_at_random": 1.0}, {"confound": 1.0}):
        other = planned(**changed)
        assert np.array_equal(usual.label, other.label) and np.array_equal(usual.kind, other.kind) and usual.record_id == other.record_id
        assert np.array_equal(usual.evidence, other.evidence) and np.array_equal(usual.process.load, other.process.load)


def test_media_are_missing_at_the_rate_asked_for_and_never_all():
    present = planned(rate={"image": 0.3, "audio": 0.0}, by_design=False).present
    assert 0.22 < 1 - present[:, MODALITIES.index("image")].mean() < 0.38
    assert present[:, [at for at, name in enumerate(MODALITIES) if name != "image"]].all()
    assert planned(rate=dict.fromkeys(MODALITIES, 1.0)).present.any(1).all()


def test_by_design_no_notes_at_night_and_shifts_without_a_camera_or_a_microphone():
    drawn = planned(rate={})
    there = {name: drawn.present[:, at] for at, name in enumerate(MODALITIES)}
    night = np.array([drawn.shifts[at].time == "night" for at in drawn.process.shift])
    assert np.array_equal(there["text"], ~night)
    for name in ("image", "audio"):
        by_shift = [there[name][drawn.process.shift == at] for at in range(24)]
        assert all(one.all() or not one.any() for one in by_shift) and 2 <= sum(not one.any() for one in by_shift) <= 5
    assert there["video"].all() and there["series"].all()


def test_notes_missing_not_at_random_tell_the_label_in_train_and_not_in_test():
    drawn = planned(records=2400, not_at_random=1.0, rate={}, by_design=False)
    noted, test = drawn.present[:, MODALITIES.index("text")], np.array([part == "test" for part in drawn.split])
    gap = {
        name: noted[rows & (drawn.label == 1)].mean() - noted[rows & (drawn.label == 0)].mean()
        for name, rows in (("train", ~test), ("test", test))
    }
    assert gap["train"] > 0.8 and abs(gap["test"]) < 0.1
    assert {part for part in drawn.split} == {"train", "val", "test"}
    assert all(len({drawn.split[at] for at in np.flatnonzero(drawn.process.shift == shift)}) == 1 for shift in range(24))


@pytest.mark.parametrize(("confound", "low", "high"), [(0.0, 0.44, 0.56), (0.6, 0.75, 0.85), (1.0, 1.0, 1.0)])
def test_the_confound_ties_the_programme_to_the_label(confound, low, high):
    drawn = planned(records=2400, confound=confound)
    assert low <= (drawn.process.programme == drawn.label).mean() <= high


def test_the_programme_is_measured_and_heard_and_seen():
    """It is no fault, but a model may cling to it."""
    slow, fast = scene({}, programme=0), scene({}, programme=1)
    rpm = [sensors.draw_sensors(one)[:, 0].mean() for one in (slow, fast)]
    assert rpm[1] > 1.3 * rpm[0]
    hum = [np.abs(np.fft.rfft(sound.draw_sound(one)))[: 2 * 60].argmax() / 2 for one in (slow, fast)]  # Hz, below 60
    assert hum[1] > 1.2 * hum[0]
    assert not np.array_equal(film.draw_film(slow), film.draw_film(fast))


VISIBLE = [(kind, name) for kind, row in evidence.COMPLEMENTARY.items() for name in row if name != "text"]
VISIBLE += [(kind, "image") for kind in KINDS if "image" not in evidence.COMPLEMENTARY[kind]]
RENDER = {"image": picture.draw_picture, "video": film.draw_film, "audio": sound.draw_sound, "series": sensors.draw_sensors}


@pytest.mark.parametrize(("kind", "name"), VISIBLE)
def test_a_stronger_fault_is_drawn_stronger(kind, name):
    """With the same nuisance, what a graver fault leaves is farther from a sound part; in deviations of its channel, where there are several."""
    number = KINDS.index(kind)
    drawn = [RENDER[name](scene({kind: trace}, number)).astype(np.float64) for trace in (0.4, 2.0, 4.0)]
    unit = drawn[0].std(0) if name == "series" else drawn[0].std()
    near, far = (np.sqrt((((one - drawn[0]) / unit) ** 2).mean()) for one in drawn[1:])
    assert far > near > 0.03


def test_what_a_medium_cannot_see_leaves_no_trace_in_it():
    """But for the picture, which draws all kinds and is given no more than chance where it is blind."""
    for name in ("video", "audio", "series"):
        for kind in KINDS:
            if name not in evidence.COMPLEMENTARY[kind]:
                one, other = (RENDER[name](scene({kind: trace}, 3)) for trace in (0.4, 4.0))
                assert np.array_equal(one, other), (kind, name)


def test_a_note_says_what_its_levels_say():
    for number in range(30):
        quiet = note.write_note(scene({}, number)).lower()
        words = {kind: {phrase.lower().rstrip(".") for phrase in note.PLAIN[kind] + note.HESITANT[kind]} for kind in KINDS}
        assert not any(phrase in quiet for phrases in words.values() for phrase in phrases)
        kind = KINDS[number % len(KINDS)]
        told = note.write_note(scene({}, number, level={kind: 1 + number % 2})).lower()
        said = (note.HESITANT, note.PLAIN)[number % 2][kind]
        assert any(phrase.lower().rstrip(".").replace(". ", " - ") in told for phrase in said)
        assert not any(phrase in told for other in KINDS if other != kind for phrase in words[other])


def test_notes_of_sound_parts_are_at_times_mistaken_and_many_faults_go_unmentioned():
    drawn = planned()
    told = evidence.mention(drawn.evidence[:, :, MODALITIES.index("text")]).any(1)
    assert 0.05 < told[drawn.label == 0].mean() < 0.25 and 0.25 < told[drawn.label == 1].mean() < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anomalous": 1.2}, r"anomalous must be in 0..1, got 1.2"),
        ({"confound": -0.1}, r"confound must be in 0..1, got -0.1"),
        ({"missing_rate": {"sound": 0.1}}, r"no modality 'sound'.*Known: audio, image"),
        ({"missing_rate": {"audio": 2.0}}, r"missing_rate of audio must be in 0..1"),
        ({"visibility": "complimentary"}, r"no visibility 'complimentary'; did you mean 'complementary'"),
        ({"records": 20}, r"records must be at least 24, got 20"),
        ({"shifts": 3}, r"shifts must be at least 6, got 3"),
        ({"film_size": 49}, r"film_size must be even, got 49"),
    ],
)
def test_options_out_of_range_are_refused_by_name(tmp_path: Path, options, message):
    with pytest.raises(DataError, match=message):
        station.read_records(tmp_path, tmp_path, **TINY | options)
    assert not any(tmp_path.iterdir())


def test_the_page_says_what_the_code_knows(root):
    """docs/station.md: the table of visibility and the AUROC of each preset."""
    text = (root / "docs/station.md").read_text()
    lines = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    for kind in KINDS:
        cells = next(cells for cells in lines if cells[0].split("`")[0] == kind)[1:]
        assert [float(cell or 0) for cell in cells] == [evidence.COMPLEMENTARY[kind].get(name, 0) for name in MODALITIES]
    for preset in evidence.PRESETS:
        cells = next(cells for cells in lines if cells[0] == preset)[1:]
        assert [float(cell) for cell in cells] == [round(value, 3) for value in evidence.population_auroc(preset).values()]
