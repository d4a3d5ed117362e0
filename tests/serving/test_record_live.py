"""Raw media of one record, encoded as they come, are scored as the stored tokens of the same record were."""

import importlib
import wave
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from stages import io, params
from stages.encoders.encoder import EncoderChanged
from stages.serving import record_predict
from stages.serving.record_model import choose, threshold_of
from tests.record_results import settings

RECORDS = """\
records:
  datasets:
    press:
      adapter: media_folder
      source: media
  encoders:
    sounds:
      kind: log_mel
    sensors:
      kind: windows
  extracts:
    press-audio:
      dataset: press
      modality: audio
      encoder: sounds
      code: stages/encoders/media/log_mel.py
    press-series:
      dataset: press
      modality: series
      encoder: sensors
      code: stages/encoders/media/windows.py
  models:
    logits:
      detector: classical.mean_logit
  runs:
    press-logits:
      dataset: press
      model: logits
      code: stages/fusion/classical
      maths: stages/fusion/classical
  protocol:
    seeds:
      - 0
    split_seed: 0
    val_fraction: 0.2
    test_fraction: 0.3
    target_false_alarm_rate: 0.1
    bootstrap_resamples: 100
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """36 strokes of a press: bad ones hum higher and push harder."""
    folder, draw = tmp_path_factory.mktemp("press"), np.random.default_rng(0)
    settings(folder, RECORDS)
    rows = []
    for number in range(36):
        label, name = number % 2, f"stroke-{number:02d}"
        tone = np.sin(2 * np.pi * (300 + 500 * label) * np.arange(8000) / 16000) + 0.3 * draw.normal(size=8000)
        (folder / "media").mkdir(exist_ok=True)
        with wave.open(str(folder / f"media/{name}.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16000)
            sound.writeframes((8000 * tone).clip(-32768, 32767).astype("<i2").tobytes())
        force = 5 + 0.5 * label + draw.normal(size=64)
        (folder / f"media/{name}.csv").write_text("time_s,force\n" + "".join(f"{step / 10},{value:.4f}\n" for step, value in enumerate(force)))
        split = ("train", "train", "val", "test")[number // 2 % 4]
        rows.append({"record_id": name, "label": label, "fault": "jam" if label else "", "group": name, "split": split, "audio_path": f"{name}.wav",
                     "series_path": f"{name}.csv" if number % 3 else None})  # fmt: skip
    schema = pyarrow.schema([(name, pyarrow.int8() if name == "label" else pyarrow.string()) for name in rows[0]])
    io.write_table(folder / "data/press/samples.parquet", {name: [row[name] for row in rows] for name in rows[0]}, schema)
    about = {"dataset": "press", "root": "media", "modalities": ["audio", "series"], "about": {}, "problems": []}
    io.write_json(folder / "data/press/dataset.json", about)
    kept = [{name: row[name] for name in ("record_id", "split", "label", "group", "fault")} for row in rows]
    io.write_json(folder / "data/press/manifest.json", {"dataset": "press", "rule": {}, "counts": {}, "samples": kept})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["extract_records", "press", "audio"], ["extract_records", "press", "series"], ["train_records", "press-logits"],
            ["evaluate_records", "press-logits"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder


def media_of(name: str) -> dict[str, Path]:
    found = {"audio": Path(f"media/{name}.wav"), "series": Path(f"media/{name}.csv")}
    row = next(row for row in io.read_table(Path("data/press/samples.parquet")) if row["record_id"] == name)
    return {modality: path for modality, path in found.items() if row[f"{modality}_path"]}


def test_a_live_record_is_scored_as_the_stored_one(project, monkeypatch):
    monkeypatch.chdir(project)
    chosen = choose(params.load())
    stored = [row for row in io.read_table(chosen.results / "predictions.parquet") if row["split"] == "test"]
    assert {len(media_of(row["record_id"])) for row in stored} == {1, 2}
    for row in stored:
        (verdict,) = record_predict.predict(params.load(), chosen, [], media_of(row["record_id"]), threshold_of(chosen))
        assert verdict.score == pytest.approx(row["score"], abs=1e-5)
        assert verdict.probability == pytest.approx(row["probability"], abs=1e-5)
        assert verdict.verdict == ("anomalous" if row["label"] else "normal")


def test_the_command_takes_media_of_one_record(project, monkeypatch, assay):
    monkeypatch.chdir(project)
    code, out, _ = assay("predict", "audio=media/stroke-01.wav", "series=media/stroke-01.csv")
    assert code == 0 and "series=media/stroke-01.csv: anomalous" in out and "audio +" in out


def test_an_encoder_with_other_weights_than_those_of_training_judges_nothing(project, monkeypatch):
    monkeypatch.chdir(project)
    path = project / "features/press/audio/records.json"
    before = path.read_bytes()
    io.write_json(path, io.read_json(path) | {"weights": {"name": "others"}})
    try:
        with pytest.raises(EncoderChanged, match="made with weights"):
            list(record_predict.predict(params.load(), chosen := choose(params.load()), [], media_of("stroke-01"), threshold_of(chosen)))
    finally:
        path.write_bytes(before)
