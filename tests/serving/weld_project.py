"""A small project whose records are made-up tokens: rows that are named as those of the study of welds, with a sample table, stores and a manifest."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow

from stages import io
from stages.datasets.records import FACT
from tests.fusion.synthetic import samples
from tests.record_results import settings
from tests.stored_records import store

WIDTHS = {"image": 12, "video": 8, "series": 6}
RECORDS = """\
records:
  datasets:
    weld:
      adapter: media_folder
      source: media
  encoders: {}
  extracts: {}
  models:
    quick:
      rows:
        mid-fusion:
          detector: classical.forest
          trees: 20
        cross-attention:
          detector: deep.mid
          label: quick
          features: 16
          encoding:
            width: 16
            heads: 2
            sensor_layers: 1
            sensor_ffn: 32
          learning:
            epochs: 2
            steps: 6
            learning_rate: 0.01
        image-only:
          detector: classical.unimodal
          modality: image
          modalities:
            - image
        setpoint-only:
          detector: classical.presence
        knn:
          detector: classical.knn
  runs:
    weld-quick:
      dataset: weld
      model: quick
      code: stages/fusion/classical
      maths: stages/fusion/classical
  protocol:
    seeds:
      - 0
      - 1
    split_seed: 0
    val_fraction: 0.2
    test_fraction: 0.3
    target_false_alarm_rate: 0.1
    bootstrap_resamples: 100
"""


def project(folder: Path, count: int = 120) -> Path:
    """Five in ten records are good; a group is three records, all good or all of one fault, and has one of two steels."""
    folder.mkdir(parents=True, exist_ok=True)
    settings(folder, RECORDS)
    path = folder / "params.yaml"
    path.write_text(re.sub(r"processes: \d+", "processes: 1", path.read_text()))
    made = sorted(samples(0, count, WIDTHS, missing=0.2), key=lambda one: one.fault)
    made = [one._replace(group=f"session-{number // 3:02d}") for number, one in enumerate(made)]
    rows = store(folder, "weld", made, WIDTHS)
    columns = {name: [row[name] for row in rows] for name in ("record_id", "label", "fault", "group", "split")}
    columns[f"{FACT}steel_type"] = [("Fe410", "BSK46")[number // 3 % 2] for number in range(count)]
    kinds = {"label": pyarrow.int8()}
    io.write_table(folder / "data/weld/samples.parquet", columns, pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns]))
    return folder
