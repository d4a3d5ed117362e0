"""`assay extract --as-records`: raw media to the files that other programs read, and that are read back here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stages import io
from stages.datasets.record_errors import RecordError
from stages.datasets.record_files import read_record
from stages.datasets.record_lists import listing
from stages.encoders import media as encoders
from stages.params import ParamsError
from stages.serving import embed
from stages.serving.cli import app
from tests.datasets.media_files import tone, write_film, write_wave
from tests.datasets.pair_trees import diff_tree

SMALL = {"backbone": "test_efficientnet", "weights": "random", "image_size": 64}


@pytest.fixture
def media(tmp_path, monkeypatch):
    """Three records: one whole, one without its film, one whose picture is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(encoders.DEFAULTS, "image", {"kind": "frames", **SMALL})
    monkeypatch.setitem(encoders.DEFAULTS, "video", {"kind": "frames", **SMALL, "reads": "video", "frames": 3})
    (tmp_path / "raw").mkdir()
    rows = ["record_id,label,group,split,image,video,audio,series"]
    for number, name in enumerate(("a", "b", "c")):
        Image.fromarray(np.full((20, 20, 3), 60 * number, np.uint8)).save(tmp_path / "raw" / f"{name}.png")
        write_film(tmp_path / "raw" / f"{name}.mp4", [0, 50, 100])
        write_wave(tmp_path / "raw" / f"{name}.wav", [tone(300 * (number + 1), 1.6)])
        (tmp_path / "raw" / f"{name}.csv").write_text("force\n" + "\n".join(str(value) for value in range(64)))
        label = "unknown" if name == "c" else number
        film = "" if name == "b" else f"{name}.mp4"
        rows.append(f"{name},{label},shift-{number},{'test' if name == 'c' else ''},{name}.png,{film},{name}.wav,{name}.csv")
    (tmp_path / "raw" / "table.csv").write_text("\n".join(rows))
    return tmp_path


def _said(path):
    return torch.load(path, weights_only=True)


def test_audio_and_video_in_their_schema(media):
    written = embed.write("raw/table.csv", media / "out", "audio-video")
    content = _said(media / "out" / "a.pt")
    assert set(content) == {"audio_tokens", "video_tokens", "labels", "id"} and content["labels"] == {"binary": 0}
    assert content["audio_tokens"].shape == (3, 120) and content["video_tokens"].shape == (3, 64)
    assert "video_tokens" not in _said(media / "out" / "b.pt"), "a missing film is a missing key"
    assert written.records == 3 and written.encoders == {"video": "frames", "audio": "log_mel"}


def test_series_in_their_schema_and_the_list_keeps_what_the_files_cannot(media):
    embed.write("raw/table.csv", media / "out", "series")
    content = _said(media / "out" / "b.pt")
    assert content["embeddings"].shape == (2, 14) and content["labels"] == 1 and content["filename"] == "b"
    found = listing(media / "out" / "manifest.json")
    assert [(one.path, one.label, one.group, one.split) for one in found.items] == [
        ("a.pt", 0, "shift-0", None), ("b.pt", 1, "shift-1", None), ("c.pt", None, "shift-2", "test")
    ]  # fmt: skip


def test_general_files_hold_every_modality_with_times_and_are_read_back(media):
    embed.write("raw/table.csv", media / "out")
    record = read_record(media / "out" / "c.pt").record
    assert set(record.modalities) == {"image", "video", "audio", "series"} and record.group == "shift-2" and record.split == "test"
    assert record.label == -1 and record.modalities["video"].time.tolist() == [0, 0.5, 1]


def test_pairs_of_pictures_and_words(media, monkeypatch):
    monkeypatch.setitem(encoders.DEFAULTS, "text", {"kind": "letters"})
    monkeypatch.setattr(embed, "_encoder", _with_letters(embed._encoder))
    (media / "pairs").mkdir()
    diff_tree(media / "pairs", 4)
    embed.write("pairs", media / "out", "image-text", "spot_the_diff")
    contents = {path.stem: _said(path) for path in (media / "out").glob("*.pt")}
    assert len(contents) == 12 and sum(content["label"] for content in contents.values()) == 6
    assert all(content["img_feat"].shape == (2, 64) and content["text_feat"].shape == (1, 26) for content in contents.values())


def _with_letters(build):
    """In place of a sentence-transformer: how often each letter stands in the note."""
    from stages.datasets.media import read_text
    from stages.encoders.media.encoder import TokenEncoder, at_moments

    def encode(notes):
        return [at_moments(torch.tensor([[float(note.count(chr(97 + place))) for place in range(26)]]), [0.0]) for note in notes]

    letters = TokenEncoder("text", 26, read_text, encode, {"entry": {"kind": "letters"}, "weights": "none"})
    return lambda modality, *others: letters if modality == "text" else build(modality, *others)


def test_a_broken_file_is_told_of_and_its_record_goes_on_without_it(media):
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(media / "raw" / f"more{number}.png")
    more = "".join(f"\nmore{number},0,,,more{number}.png,,," for number in range(30))
    (media / "raw" / "table.csv").write_text((media / "raw" / "table.csv").read_text() + more)
    (media / "raw" / "a.png").write_bytes(b"no picture")
    outcome = CliRunner().invoke(app, ["extract", "raw/table.csv", "--as-records", "-o", "out", "--json"])
    said = json.loads(outcome.stdout)
    assert said["records"] == 33 and [one["record_id"] for one in said["unreadable"]] == ["a"]
    assert "image" not in _said(media / "out" / "a.pt")["modalities"]


def test_what_cannot_be_done_is_said_before_anything_is_written(media):
    with pytest.raises(ParamsError, match="no schema 'image_text'; did you mean 'image-text'"):
        embed.write("raw/table.csv", media / "out", "image_text")
    with pytest.raises(ParamsError, match="--encoder: the records have no modality 'sound'"):
        embed.write("raw/table.csv", media / "out", chosen={"sound": "log_mel"})
    with pytest.raises(ParamsError, match="audio has no encoder 'yam'. Say --encoder audio=NAME with one of .*yamnet"):
        embed.write("raw/table.csv", media / "out", chosen={"audio": "yam"})
    assert not list((media).glob("out/*.pt"))
    (media / "full").mkdir()
    (media / "full" / "mine.pt").write_bytes(b"")
    with pytest.raises(RecordError, match="E330 .*is not empty"):
        embed.write("raw/table.csv", media / "full")


def test_a_data_set_of_images_is_no_source_of_records(media):
    io.write_table(media / "data/solar/samples.parquet", {"sample_id": ["a"], "path": ["a.png"]})
    with pytest.raises(ParamsError, match="solar is a data set of images or signals, not of records"):
        embed.write("solar", media / "out")


def test_a_try_that_failed_leaves_a_folder_that_may_be_used_again(media):
    (media / "pairs").mkdir()
    diff_tree(media / "pairs", 4)
    with pytest.raises(ParamsError, match="text has no encoder 'yam'"):
        embed.write("pairs", media / "out", "image-text", "spot_the_diff", {"text": "yam"})
    assert [path.name for path in (media / "out").iterdir()] == ["media"]
    with pytest.raises(ParamsError, match="text has no encoder 'yam'"):
        embed.write("pairs", media / "out", "image-text", "spot_the_diff", {"text": "yam"})
    with pytest.raises(ParamsError, match="^adapter: no adapter of records 'spot_the_dif'"):
        embed.write("pairs", media / "new", "image-text", "spot_the_dif")
