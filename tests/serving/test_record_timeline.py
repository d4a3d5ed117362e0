"""A weld on one clock: every lane begins where its own medium shows the arc, the span lies where its tokens do, what is missing is said."""

import numpy as np
import pytest
from PIL import Image

from stages.serving import record_timeline as lines

ARC = {"series": 1.0, "audio": 2.0}  # when each medium shows it, on its own clock
BURNS = 6.0  # seconds


def write_log(path, arc: float) -> None:
    rows = ["Time,Pressure,Primary Weld Current,Secondary Weld Voltage"]
    for at in np.arange(0, arc + BURNS, 0.1):
        burning = at >= arc
        rows.append(f"10:00:{at:06.3f},{1.5 + at / 10:.3f},{180.0 if burning else 0.0},{20.0 if burning else 0.0}")
    path.write_text("\n".join(rows) + "\n")


def write_sound(path, arc: float) -> None:
    import wave

    rate = lines.RATE
    noise = np.random.default_rng(0).normal(size=int((arc + BURNS) * rate)) * 300
    noise[int(arc * rate) :] *= 20
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(noise.clip(-32768, 32767).astype("<i2").tobytes())


@pytest.fixture
def weld(tmp_path):
    write_log(tmp_path / "log.csv", ARC["series"])
    write_sound(tmp_path / "sound.wav", ARC["audio"])
    (tmp_path / "images").mkdir()
    for view in range(3):
        Image.new("RGB", (60, 40), (90 * view, 10, 10)).save(tmp_path / f"images/{view}.jpg")
    paths = {"video_path": None, "audio_path": "sound.wav", "series_path": "log.csv", "image_path": "images"}
    return tmp_path, {"record_id": "w1", **paths}


def test_lanes_of_media_that_were_started_apart_end_together_on_the_clock_of_the_arc(weld):
    found = lines.timeline(*weld, None)
    assert [lane["name"] for lane in found["lanes"]] == ["sound level", "sensors"] and all(lane["onset"] for lane in found["lanes"])
    assert found["end"] == pytest.approx(BURNS, abs=0.25) and found["missing"] == ["video"] and len(found["photos"]) == 3
    assert lines._sound(weld[0] / "sound.wav").last == pytest.approx(lines._sensors(weld[0] / "log.csv").last, abs=0.3)
    assert [tick["text"] for tick in found["ticks"]][:2] == ["0 s", "1 s"] and "sound level, sensors of w1" in found["said"]


def test_the_suspected_span_lies_where_its_tokens_do_and_only_its_lane_is_marked(weld):
    found = lines.timeline(*weld, {"modality": "series", "start": 0.05, "end": 0.1, "clock_s": 40.0})
    assert found["span"]["text"] == "2.0 to 4.0 s, by series"
    assert found["span"]["left"] == pytest.approx(100 * 2 / found["end"]) and found["span"]["width"] == pytest.approx(100 * 2 / found["end"])
    assert [lane["suspected"] for lane in found["lanes"]] == [False, True] and "suspected from 2.0" in found["said"]
    assert lines.timeline(*weld, {"modality": "series", "start": 0.05, "end": 0.1, "clock_s": None})["span"] is None


def test_a_curve_rises_to_the_top_and_leaves_out_what_was_before_the_arc():
    at = np.array([-1.0, 0.0, 1.0, 2.0, 9.0])
    drawn = [tuple(map(float, point.split(","))) for point in lines.points(at, np.array([9.0, 0.0, np.nan, 4.0, 9.0]), 4.0).split()]
    assert [x for x, _ in drawn] == [0, 500] and drawn[0][1] > drawn[1][1]
    assert lines.points(at, np.full(5, np.nan), 4.0) == ""


def test_a_medium_that_cannot_be_read_is_missing_and_a_record_without_any_has_no_timeline(weld):
    root, sample = weld
    (root / "sound.wav").write_bytes(b"no sound")
    assert lines.timeline(root, sample, None)["missing"] == ["video", "audio"]
    nothing = {"record_id": "w1", "image_path": "images", "series_path": None}
    assert lines.timeline(root, nothing, None) is None


def test_sensors_whose_clock_jumps_leave_the_others_their_room(weld):
    folder = weld[0]
    rows = (folder / "log.csv").read_text().splitlines()
    late = [row.replace("10:00:", "10:01:") for row in rows[-20:]]
    (folder / "jumps.csv").write_text("\n".join([*rows[:-20], *late]) + "\n")
    sample = {"record_id": "w1", "series_path": "jumps.csv", "audio_path": "sound.wav", "image_path": None}
    found = lines.timeline(folder, sample, None)
    assert found["end"] == pytest.approx(BURNS, abs=0.2) and "sensors go on to 66 s" in found["cut"]
    alone = lines.timeline(folder, sample | {"audio_path": None}, None)
    assert alone["end"] > 60 and alone["cut"] == ""
    assert lines.timeline(folder, sample | {"series_path": "log.csv"}, None)["cut"] == ""
