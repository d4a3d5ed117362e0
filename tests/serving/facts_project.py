"""A small project of made-up welds with settings: six sensors in units of their own, pictures, the setting as a control, two detectors."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from stages import io
from stages.datasets.records import FACT, Record, Tokens
from tests.class_project import ABOUT
from tests.fusion.synthetic import samples
from tests.record_results import settings
from tests.stored_records import store, work

RECORDS = """\
records:
  datasets:
    weld:
      adapter: media_folder
      source: media
  encoders: {}
  extracts: {}
  models:
    telling:
      rows:
        cross-attention:
          detector: classical.forest
          trees: 12
        setpoint-only:
          detector: classical.presence
          modalities:
            - setpoint
        knn:
          detector: classical.knn
  runs:
    weld-telling:
      dataset: weld
      model: telling
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
WIDTHS = {"image": 12, "series": 6}
SENSORS = {"pressure": [2.0, 0.1], "gas_flow": [14.0, 1.0], "feed": [62.0, 4.0], "current": [190.0, 8.0], "wire": [5.0, 3.0], "voltage": [23.0, 1.0]}


def facts_of(number: int) -> dict[str, str | float]:
    """Of the number-th record; a session is three records, and of every four sessions one is test."""
    return {"current_a": 180.0 + number // 3 % 11, "steel_type": ("FE410", "BSK46")[number // 12 % 2]}


def judged(folder: Path, count: int = 180) -> Path:
    """params.yaml, data, features, models and metrics."""
    settings(folder, RECORDS)
    path, made = folder / "params.yaml", []
    path.write_text(re.sub(r"processes: \d+", "processes: 1", path.read_text()))
    for number, record in enumerate(samples(0, count, WIDTHS, missing=0.2)):
        told = facts_of(number)
        setting = Tokens(torch.tensor([[told["current_a"], float(told["steel_type"] == "FE410")]]), torch.zeros(1))
        made.append(record._replace(modalities=record.modalities | {"setpoint": setting}))
    rows = store(folder, "weld", made, WIDTHS | {"setpoint": 2}, controls=["setpoint"])
    entry(folder, "setpoint", {"name": "setpoints", "kind": "facts", "nominal": {"current_a": [0.0, 1.0]}, "levels": {"steel_type": ["FE410"]}})
    entry(folder, "series", {"name": "steps", "kind": "sensor_steps", "nominal": SENSORS})
    io.write_json(folder / "data/weld/dataset.json", ABOUT)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {f"{FACT}{name}": [facts_of(number)[name] for number in range(count)] for name in facts_of(0)}
    io.write_table(folder / "data/weld/samples.parquet", columns)
    return work(folder, ("train_records", "weld-telling"), ("evaluate_records", "weld-telling"))


def entry(folder: Path, modality: str, content: dict) -> None:
    path = folder / "features/weld" / modality / "records.json"
    io.write_json(path, io.read_json(path) | {"entry": content})


def moved(record: Record, sensor: str, by: float) -> Record:
    """With one sensor higher by so many of its own units."""
    tokens = record.modalities.get("series")
    if tokens is None:
        return record
    values, place = tokens.values.clone(), list(SENSORS).index(sensor)
    values[:, place] += by / SENSORS[sensor][1]
    return record._replace(modalities=record.modalities | {"series": tokens._replace(values=values)})
