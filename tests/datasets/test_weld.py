"""The generated welds: what is known of them by construction, and that their media are real files which say what the numbers say, when they say it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import io
from stages.datasets import weld
from stages.datasets.arc_clock import heard, seen
from stages.datasets.media import read_audio, read_grey_film
from stages.datasets.record_splits import Rule, split
from stages.datasets.samples import DataError
from stages.datasets.weld_files import SENSORS, arc_on, read_log
from stages.datasets.weld_media import evidence, film, photos, process, sensors, sound
from stages.datasets.weld_media.evidence import DEFECTS, GOOD, MEDIA, SLOTS, TRACES

TINY = {"sessions": 36, "welds_per_session": 1, "film_size": 32, "photo_size": 48, "missing_rate": 0.1, "missing_views": 0.2}
RATE = dict.fromkeys(MEDIA, 0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weld") / "media"
    folder.mkdir()
    return weld.read_records(folder, folder, **TINY)


@pytest.fixture(scope="module")
def oracle(made):
    return {row["place"]: row for row in io.read_table(made.root / weld.ORACLE)}


def planned(**changed) -> weld.Plan:
    settings = {"seed": 0, "sessions": 48, "welds": 8, "visibility": "complementary", "confound": 0.0, "offset_s": 0.5, "rate": RATE}
    return weld.plan(**(settings | {"missing_views": 0.1} | changed))


def scene(medium: str, **levels: list[float]) -> process.Scene:
    """A weld of which one medium shows nothing but what is given: a level for each slot."""
    session = process.draw_sessions(0, ["good"], 0.0)[0]._replace(name="")
    usual = {name: np.zeros(SLOTS) for name in TRACES[medium]}
    moments = (np.arange(SLOTS) + 0.5) / SLOTS * 8
    return process.Scene(0, 0, session, 8.0, 0.8, 9.6, moments, usual | {name: np.array(level) for name, level in levels.items()})


def in_slot(slot: int, level: float = 4.0) -> list[float]:
    return [level if at == slot else 0.0 for at in range(SLOTS)]


@pytest.mark.parametrize("visibility", ["complementary", "coincidence"])
def test_the_likelihood_ratio_is_that_of_the_densities_it_was_drawn_from(visibility):
    """Against normal densities multiplied out: every slot and grade of a defect, every decoy and every echo that there might be."""
    from scipy.special import logsumexp

    chosen = evidence.preset(visibility)
    kinds = ["warping", "crater_cracks", "spatter"]
    drawn = evidence.draw_evidence(np.array([DEFECTS.index("warping"), GOOD]), chosen, np.random.default_rng(3))
    ratios = evidence.log_ratios(drawn.x, chosen)

    def log_density(x, shift, medium) -> float:
        """Of (J, K) numbers, the decoy summed out."""
        apart = x - shift
        plain = -(apart**2).sum() / 2
        moved = [plain + strength * apart - strength**2 / 2 for strength in np.array(chosen.grades) * evidence.DECOY]
        chance = chosen.decoys[medium]
        return logsumexp([plain + np.log(1 - chance), logsumexp(moved) - np.log(np.size(moved)) + np.log(chance)])

    def as_good(at: int, subset) -> float:
        alone = sum(log_density(drawn.x[name][at], 0, name) for name in subset)
        if not chosen.echoes:
            return alone
        echoes = []
        for kind in evidence.ECHOED:
            for grade in chosen.grades:
                total = 0.0
                for name in subset:
                    x, shifts = drawn.x[name][at], np.zeros((SLOTS, SLOTS, len(TRACES[name])))
                    if name in chosen.signs[kind]:
                        trace, share = chosen.signs[kind][name]
                        shifts[np.arange(SLOTS), np.arange(SLOTS), TRACES[name].index(trace)] = grade * share
                    total += logsumexp([-((x - shift) ** 2).sum() / 2 for shift in shifts]) - np.log(SLOTS)
                echoes.append(total)
        return np.logaddexp(np.log(1 - chosen.echoes) + alone, np.log(chosen.echoes) + logsumexp(echoes) - np.log(len(echoes)))

    def expected(at: int, kind: str, subset) -> float:
        found = []
        for grade in chosen.grades:
            for slot in range(SLOTS):
                for other in [place for place in range(SLOTS) if place != slot] if kind in evidence.APART else [slot]:
                    if kind in evidence.LAST and slot != SLOTS - 1:
                        continue
                    total = 0.0
                    for name in subset:
                        shift = np.zeros((SLOTS, len(TRACES[name])))
                        if name in chosen.signs[kind]:
                            trace, share = chosen.signs[kind][name]
                            place = other if name in evidence.APART.get(kind, ()) else slot
                            shift[place, TRACES[name].index(trace)] = grade * share
                        total += log_density(drawn.x[name][at], shift, name)
                    found.append(total)
        return logsumexp(found) - np.log(len(found)) - as_good(at, subset)

    for kind in kinds:
        for subset in (("audio",), ("video", "audio"), MEDIA):
            for at in range(2):
                assert ratios[subset][at, DEFECTS.index(kind)] == pytest.approx(expected(at, kind, subset), abs=1e-8), (kind, subset, at)


@pytest.fixture
def small_population(monkeypatch):
    monkeypatch.setattr(evidence, "POPULATION", 2000)


def test_all_media_together_know_more_than_the_best_of_them(small_population):
    known = evidence.population("complementary")
    best = max(known["auroc"][name] for name in MEDIA)
    assert 0.7 < best < 0.85 and known["auroc"]["all"] > best + 0.15
    assert 0.97 < known["auroc"]["all"] < 0.998 and 0.9 < known["accuracy"] < 0.99
    assert len(known["auroc"]) == 15


def test_where_the_photographs_show_all_the_others_add_nothing(small_population):
    known = evidence.population("photos")["auroc"]
    assert known["all"] == known["image"] > 0.95
    assert known["video"] == known["audio+series"] == 0.5


def test_where_every_medium_shows_all_each_is_nearly_enough(small_population):
    known = evidence.population("redundant")["auroc"]
    assert all(known[name] > 0.88 for name in MEDIA) and known["all"] > 0.99


def test_two_defects_differ_by_nothing_but_whether_two_traces_coincide():
    chosen, count = evidence.preset("complementary"), 600
    pair = [DEFECTS.index(name) for name in ("lack_of_fusion", "warping")]
    defect = np.repeat(pair, count)
    ratios = evidence.log_ratios(evidence.draw_evidence(defect, chosen, np.random.default_rng(0)).x, chosen)

    def told_apart(subset) -> float:
        return evidence.auroc(ratios[subset][:, pair[0]] - ratios[subset][:, pair[1]], (defect == pair[0]).astype(int))

    assert told_apart(("video", "audio")) > 0.95
    assert abs(told_apart(("video",)) - 0.5) < 0.04 and abs(told_apart(("audio",)) - 0.5) < 0.04


def test_when_something_is_to_be_seen_counts_and_not_only_that_it_is():
    """Good welds that are echoes of defects with a trace in all of three media: the media tell them from those defects together, and none does alone."""
    chosen = evidence.preset("coincidence")._replace(decoys=dict.fromkeys(MEDIA, 0.0))
    defect = np.where(np.arange(6000) % 2, DEFECTS.index("spatter"), GOOD)
    drawn = evidence.draw_evidence(defect, chosen._replace(echoes=1.0), np.random.default_rng(0))
    kept = (defect != GOOD) | (drawn.echo == DEFECTS.index("spatter"))
    ratios = evidence.log_ratios({name: x[kept] for name, x in drawn.x.items()}, chosen)
    label = (defect[kept] != GOOD).astype(int)
    score = {subset: evidence.auroc(ratio[:, DEFECTS.index("spatter")], label) for subset, ratio in ratios.items()}
    assert score[MEDIA] > 0.95 and all(abs(score[name,] - 0.5) < 0.06 for name in ("video", "image", "audio"))


def test_a_weld_without_a_medium_is_judged_by_the_others():
    chosen = evidence.preset("complementary")
    x = evidence.draw_evidence(np.array([3, GOOD]), chosen, np.random.default_rng(1)).x
    ratios = evidence.log_ratios(x, chosen, np.array([[False, True, False, False]] * 2))
    assert np.allclose(ratios[MEDIA], evidence.log_ratios(x, chosen)["image",]) and np.allclose(ratios["audio", "series"], 0, atol=1e-12)


def test_no_renderer_is_told_the_class():
    drawn = planned()
    told = repr([weld.scene(drawn, at, name, 0) for at in (0, 200, 383) for name in MEDIA])
    assert not any(name in told for name in (*DEFECTS, "good"))
    swapped = drawn._replace(defect=np.roll(drawn.defect, 100), classes=drawn.classes[::-1])
    assert np.array_equal(film.draw_film(weld.scene(drawn, 5, "video", 0), 32), film.draw_film(weld.scene(swapped, 5, "video", 0), 32))


def test_files_are_what_the_release_would_hold(made, oracle):
    """The arc comes on in each medium when the oracle says, but where a hammer rings just before it."""
    off = {"video": [], "audio": [], "series": []}
    for row in made.rows:
        for name, path in row.paths.items():
            place, truth = made.root / path, oracle[path.rsplit("/", 1)[0] if name != "image" else path.removesuffix("/images")]
            if name == "image":
                pictures = [np.asarray(Image.open(one)) for one in place.iterdir()]
                assert 1 <= len(pictures) <= 5 and all(one.shape == (48, 48, 3) and one.std() > 20 for one in pictures)
                continue
            if name == "video":
                shown = read_grey_film(place, 32)
                arc = seen(shown.frames, shown.time_s)
            elif name == "audio":
                arc = heard(read_audio(place, sound.RATE).samples, sound.RATE)
            else:
                log = read_log(place)
                assert log.variables == SENSORS
                arc = arc_on(log)
            off[name].append(abs(arc - truth[f"arc_on_s_{name}"]))
    for name, most in (("video", 0.15), ("audio", 0.06), ("series", 0.13)):
        assert 25 < len(off[name]) < 36 and np.quantile(off[name], 0.9) < most, name


def test_records_know_their_class_their_session_and_what_was_set(made, oracle):
    assert len(made.rows) == 36 == len({row.record_id for row in made.rows})
    assert {row.fault for row in made.rows} == {"", *DEFECTS} and all(bool(row.fault) == row.label for row in made.rows)
    assert all(row.group.startswith(row.fault or "good") and row.split is None for row in made.rows)
    assert all({"weld_type", "current_a", "robot_speed_cpm", "session"} <= set(row.facts) for row in made.rows)
    assert not any(path for row in made.rows for path in row.paths.values() if not (made.root / path).exists())
    codes = {problem.code for problem in made.problems}
    assert {"E442", "E444", "E447", "E448"} <= codes and not codes & {"E420", "E441", "E443", "E449"}
    label = np.array([row["label"] for row in oracle.values()])
    ratio = np.array([row["log_ratio_all"] for row in oracle.values()])
    assert evidence.auroc(ratio, label) == pytest.approx(made.about["oracle_auroc"]["records"]["all"], abs=1e-6)


def test_the_same_options_give_the_same_bytes_and_another_seed_others(made, tmp_path):
    drawn = planned(sessions=36, welds=1, rate=dict.fromkeys(MEDIA, 0.1), missing_views=0.2)
    for session in (0, 9, 20):
        weld.render_session(tmp_path, drawn, session, weld.Options(0, 32, 48, True))
    written = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert {path.suffix for path in written} == {".csv", ".avi", ".flac", ".jpg"}
    assert all(path.read_bytes() == (made.root / path.relative_to(tmp_path)).read_bytes() for path in written)
    assert weld.manifest(drawn, 0) == (made.root / "manifest.csv").read_text()
    assert not np.array_equal(planned().evidence.x["audio"], planned(seed=1).evidence.x["audio"])


def test_what_is_missing_offset_or_confounded_leaves_classes_and_evidence_alone():
    usual = planned()
    for changed in ({"rate": dict.fromkeys(MEDIA, 0.4)}, {"missing_views": 0.5}, {"confound": 1.0}, {"offset_s": 2.0}):
        other = planned(**changed)
        assert np.array_equal(usual.defect, other.defect) and usual.part == other.part
        assert all(np.array_equal(usual.evidence.x[name], other.evidence.x[name]) for name in MEDIA)
    assert np.ptp(planned(offset_s=2.0).timing.offset_s, axis=1).max() > 1.5 and not planned(offset_s=0.0).timing.offset_s.any()


@pytest.mark.parametrize("confound, least, most", [(0.0, 0.0, 0.4), (1.0, 0.85, 1.0)])
def test_what_was_set_tells_the_class_only_as_far_as_the_confound_goes(confound, least, most):
    """The nearest other session by current, voltage, gas and speed, in deviations: how often it is of the same class."""
    drawn = planned(sessions=96, confound=confound)
    numbers = np.array([[one.setting[at] for at in range(3, 7)] for one in drawn.sessions]) / list(process.SPREAD.values())
    far = ((numbers[:, None] - numbers) ** 2).sum(2) + np.diag([np.inf] * len(numbers))
    nearest = far.argmin(1)
    assert least <= np.mean([drawn.classes[at] == drawn.classes[other] for at, other in enumerate(nearest)]) <= most


@pytest.mark.parametrize("sessions", [36, 48, 96])
def test_every_class_is_in_every_list(sessions):
    drawn = planned(sessions=sessions)
    names = ["", *DEFECTS]
    rows = [
        {"record_id": str(at), "split": None, "label": int(defect != GOOD), "group": drawn.place(at).split("/")[0], "fault": names[defect + 1]}
        for at, defect in enumerate(drawn.defect.tolist())
    ]
    for seed in range(3):
        found = {(sample["split"], sample["fault"]) for sample in split("weld", rows, Rule(seed, 0.15, 0.25)).samples}
        assert found == {(part, name) for part in ("train", "val", "test") for name in names}
    assert 0.2 < np.mean(drawn.defect == GOOD) < 0.4 or sessions == 36


@pytest.mark.parametrize("slot", [1, 6])
@pytest.mark.parametrize("trace", TRACES["series"])
def test_a_trace_of_the_sensors_is_where_its_slot_is(trace, slot):
    time, quiet = sensors.draw_sensors(scene("series"))
    _, shown = sensors.draw_sensors(scene("series", **{trace: in_slot(slot)}))
    changed = np.abs(shown - quiet)[:, [0, 1, 2, 3, 5]].max(1)  # the wire that was used only ever grows
    middle = 0.8 + (slot + 0.5)
    assert changed[np.abs(time - middle) < 0.3].min() > 0.5 and changed[np.abs(time - middle) > 0.85].max() < 0.05


@pytest.mark.parametrize("trace", ["hiss", "flutter", "hum"])
def test_a_trace_of_the_sound_is_where_its_slot_is(trace):
    quiet, shown = sound.draw_sound(scene("audio")), sound.draw_sound(scene("audio", **{trace: in_slot(3)}))
    time = np.arange(len(quiet)) / sound.RATE
    there = np.abs(time - 0.8 - 3.5) < 0.4
    assert np.abs(shown - quiet)[there].max() > 0.01 and np.abs(shown - quiet)[np.abs(time - 4.3) > 0.85].max() < 1e-3


@pytest.mark.parametrize("trace", ["flare", "wander", "sag"])
def test_a_trace_of_the_film_is_where_its_slot_is(trace):
    quiet = film.draw_film(scene("video"), 48).astype(int)
    shown = film.draw_film(scene("video", **{trace: in_slot(3)}), 48).astype(int)
    time = np.arange(len(quiet)) / film.RATE
    changed = np.abs(shown - quiet).mean((1, 2))
    assert changed[np.abs(time - 4.3) < 0.3].min() > 1 and changed[np.abs(time - 4.3) > 1].max() < 0.7


@pytest.mark.parametrize("trace", TRACES["image"])
def test_a_trace_on_the_bead_is_where_the_arc_was_then(trace):
    """Seen from above: the bead runs from left to right, slot 6 is right of its middle."""
    quiet = photos.draw_photos(scene("image"), 96)[0].astype(int)
    shown = photos.draw_photos(scene("image", **{trace: in_slot(6)}), 96)[0].astype(int)
    changed = (np.abs(shown - quiet).sum(2) > 90).sum(0)
    at = np.arange(96) / 96
    middle = 0.06 + 0.88 * (6.5 / 8 + photos.MARGIN) / (1 + 2 * photos.MARGIN)
    near = np.abs(at - middle) < 0.11
    assert changed[near].sum() > 12 and changed[near].sum() > 2 * changed[~near].sum()


def test_the_paper_label_is_cut_off_with_the_top_sixth():
    picture = photos.draw_photos(scene("image"), 96)[0]
    labelled = {code: photos.with_label(picture, code) for code in ("00", "08")}
    below = int(96 * photos.LABEL_END)
    assert not np.array_equal(labelled["00"][:below], labelled["08"][:below])
    assert all(np.array_equal(one[below:], picture[below:]) for one in labelled.values())


@pytest.mark.parametrize(
    "options, what",
    [
        ({"sessions": 35}, "sessions must be at least 36, got 35"),
        ({"film_size": 30}, "film_size must be at least 32"),
        ({"photo_size": 97}, "must be even"),
        ({"missing_rate": {"vidio": 0.1}}, "did you mean 'video'"),
        ({"missing_rate": 1.2}, "in 0..1, got 1.2"),
        ({"offset_s": 3}, "offset_s must be in 0..2, got 3"),
        ({"visibility": "photo"}, "did you mean 'photos'"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, what, tmp_path: Path):
    with pytest.raises(DataError, match=what.replace("(", r"\(")):
        weld.read_records(tmp_path, tmp_path, **options)


@pytest.mark.slow
def test_no_plain_statistic_of_one_medium_tells_good_from_bad():
    """Mean brightness, loudness, mean current and voltage of 240 welds, nothing confounded: far below what the best possible model reaches."""
    drawn = planned(sessions=80, welds=3)
    label = (drawn.defect != GOOD).astype(int)

    def measured(at: int) -> list[float]:
        shown = film.draw_film(weld.scene(drawn, at, "video", 0), 32)
        listened = sound.draw_sound(weld.scene(drawn, at, "audio", 0))
        _, log = sensors.draw_sensors(weld.scene(drawn, at, "series", 0))
        photo = photos.draw_photos(weld.scene(drawn, at, "image", 0), 48)
        return [shown.mean(), listened.std(), log[:, 3].max(), log[log[:, 3] > 5, 3].mean(), log[log[:, 3] > 5, 5].mean(), photo.mean(), photo.std()]

    for column in np.array([measured(at) for at in range(len(label))]).T:
        assert 0.25 < evidence.auroc(column, label) < 0.75
