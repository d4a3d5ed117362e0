"""Raw media of records: what a good file gives, and how each hostile file is refused."""

import numpy as np
import pytest
from PIL import Image

from stages.datasets import media
from stages.datasets.samples import DataError
from tests.datasets.media_files import tone, write_film, write_wave


def test_frames_of_a_film_are_evenly_spaced_and_hold_its_ends(tmp_path):
    film = write_film(tmp_path / "a.mp4", range(0, 210, 10))  # 21 frames
    clip = media.read_video(film, 5)
    assert clip.frames.shape == (5, 32, 32, 3) and clip.frames.dtype == np.uint8
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), [0, 50, 100, 150, 200], atol=4)
    np.testing.assert_allclose(clip.time_s, [0, 0.5, 1, 1.5, 2], atol=1e-6)


def test_a_film_that_is_shorter_than_asked_gives_each_frame_once(tmp_path):
    film = write_film(tmp_path / "a.mp4", [0, 100, 200])
    for frames in (None, 3, 8):
        np.testing.assert_allclose(media.read_video(film, frames).frames.mean((1, 2, 3)), [0, 100, 200], atol=4)


def test_a_sound_is_the_mean_of_its_channels_at_the_rate_asked_for(tmp_path):
    left, right = tone(440, rate=44100), np.zeros(22050)
    sound = media.read_audio(write_wave(tmp_path / "a.wav", [left, right], 44100), 16000)
    assert sound.rate == 16000 and abs(len(sound.samples) - 8000) <= 2 and sound.samples.dtype == np.float32
    inner = slice(200, 7800)
    np.testing.assert_allclose(sound.samples[inner], tone(440)[inner] / 2, atol=2e-3)


def test_a_compressed_sound_is_read_as_the_plain_one(tmp_path):
    import av

    plain = write_wave(tmp_path / "a.wav", [tone(440)])
    with av.open(str(tmp_path / "a.flac"), "w") as container, av.open(str(plain)) as source:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        for frame in source.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_array_equal(media.read_audio(tmp_path / "a.flac", 16000).samples, media.read_audio(plain, 16000).samples)


def test_a_signal_keeps_its_gaps_and_loses_its_label(tmp_path):
    (tmp_path / "a.csv").write_text("time,force,heat,label\n0.0,1,2,0\n0.5,,3,1\n1.0,4,5,1\n")
    signal = media.read_series(tmp_path / "a.csv")
    assert signal.variables == ("force", "heat")
    np.testing.assert_array_equal(signal.values, np.array([[1, 2], [np.nan, 3], [4, 5]], np.float32))
    np.testing.assert_array_equal(signal.time_s, [0, 0.5, 1])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_note_is_the_same_in_every_encoding_that_says_what_it_is(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("  Größe 3 µm\r\n".encode(encoding))
    assert media.read_text(tmp_path / "a.txt") == "Größe 3 µm"


def test_kinds_are_told_from_endings():
    from pathlib import Path

    names = {"a.PNG": "image", "b.mp4": "video", "c.wav": "audio", "d.csv": "series", "e.txt": "text", ".f.png": None, "g.pt": None}
    assert {name: media.kind_of(Path(name)) for name in names} == names


def _hostile(tmp_path, film, sound):
    png = tmp_path / "good.png"
    Image.new("RGB", (64, 64)).save(png)
    early = write_film(tmp_path / "early.mp4", [0, 50, 100, 150, 200] * 4, options={"movflags": "faststart"}).read_bytes()
    cases = {
        "cut.png": ("image", png.read_bytes()[:60], "E431"),
        "film.png": ("image", film.read_bytes(), "E431"),
        "cut.mp4": ("video", film.read_bytes()[:700], "E432"),
        "half.mp4": ("video", early[: len(early) // 2], "E432"),
        "most.mp4": ("video", early[: len(early) * 8 // 10], "E432"),  # whole packets only: nothing in it is damaged
        "sound.mp4": ("video", sound.read_bytes(), "E432"),
        "list.mp4": ("video", b"ffconcat version 1.0\nfile 'beside.mp4'\n", "E432"),
        "noise.wav": ("audio", np.random.default_rng(0).bytes(4000), "E433"),
        "film.wav": ("audio", film.read_bytes(), "E433"),
        "head.wav": ("audio", sound.read_bytes()[:44], "E433"),
        "zeros.txt": ("text", b"a\0b", "E435"),
        "latin.txt": ("text", "Gr\xf6\xdfe".encode("latin-1"), "E435"),
        "blank.txt": ("text", b"  \n", "E435"),
        "long.txt": ("text", b"a" * (media.MAX_TEXT_BYTES + 1), "E435"),
        "zeros.csv": ("series", b"a,b\n1,\0\n", "E317"),
        "words.csv": ("series", b"a,b\nx,y\n", "E319"),
    }
    for kind, suffixes in media.SUFFIXES.items():
        cases[f"empty{suffixes[0]}"] = (kind, b"", "E430")
    return cases


def test_hostile_files_are_refused_by_code_and_name(tmp_path):
    film, sound = write_film(tmp_path / "good.mp4", [0, 50, 100, 150, 200] * 4), write_wave(tmp_path / "good.wav", [tone(440)])
    write_film(tmp_path / "beside.mp4", [0, 50, 100, 150, 200])
    given = {"video": (4,), "audio": (16000,)}
    for name, (kind, content, code) in _hostile(tmp_path, film, sound).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as refusal:
            media.READERS[kind](path, *given.get(kind, ()))
        assert str(refusal.value).startswith(f"{code} {path}"), (name, str(refusal.value))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="E430 .*absent.wav is not here"):
        media.read_audio(tmp_path / "absent.wav", 16000)


def test_limits_hold_while_a_film_or_a_sound_is_decoded(tmp_path, monkeypatch):
    film, sound = write_film(tmp_path / "a.mp4", range(20)), write_wave(tmp_path / "a.wav", [tone(440, 2)])
    monkeypatch.setattr(media, "MAX_CLIP_BYTES", 10 * 32 * 32 * 3)
    with pytest.raises(DataError, match="E432 .*Ask for fewer frames"):
        media.read_video(film)
    assert len(media.read_video(film, 10).frames) == 10
    monkeypatch.setattr(media, "MAX_FILM_FRAMES", 19)
    with pytest.raises(DataError, match="E432 .*more than 19 frames"):
        media.read_video(film, 4)
    monkeypatch.setattr(media, "MAX_SOUND_S", 1)
    with pytest.raises(DataError, match="E433 .*longer than 1 s"):
        media.read_audio(sound, 16000)
    monkeypatch.setattr(media.images, "MAX_PIXELS", 32 * 32 - 1)
    with pytest.raises(DataError, match="E432 .*Scale it down"):
        media.read_video(film, 4)
