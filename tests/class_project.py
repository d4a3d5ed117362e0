"""A small project of made-up records with kinds of fault, which has been through the verbs: models that tell them, one that does not, and the setting alone.

The setting is a control modality of its own; how far it tells the fault is a dial, `confound`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from stages import io
from stages.datasets.records import Tokens
from stages.seed import numpy_generator
from tests.fusion.synthetic import WIDTHS, samples
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
        mid-fusion:
          detector: classical.forest
          trees: 3
          leaf: 20
        image-only:
          detector: classical.forest
          trees: 10
          modalities:
            - image
        setpoint-only:
          detector: classical.forest
          trees: 12
          blind: sees the setting alone
          modalities:
            - setpoint
    plain:
      rows:
        knn:
          detector: classical.knn
  runs:
    weld-telling:
      dataset: weld
      model: telling
      code: stages/fusion/classical
      maths: stages/fusion/classical
    weld-plain:
      dataset: weld
      model: plain
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
RUNS = ("weld-telling", "weld-plain")
ABOUT = {"dataset": "weld", "adapter": "media_folder", "root": "data/weld/media", "modalities": list(WIDTHS), "about": {"kind": "made-up"}, "problems": []}


def judged(folder: Path, count: int = 180, confound: float = 1.0, records: str = RECORDS) -> Path:
    """params.yaml, data, features, models and metrics. confound: the share of records whose setting gives their class away. records: that section."""
    settings(folder, records)
    random, kinds, made = numpy_generator(0, "setting"), list(WIDTHS), []
    for record in samples(0, count):
        told = random.random() < confound
        place = kinds.index(record.fault) + 1 if record.fault else 0
        setting = Tokens(torch.tensor([[float(place if told else random.integers(4))]]), torch.zeros(1))
        made.append(record._replace(modalities=record.modalities | {"setpoint": setting}))
    rows = store(folder, "weld", made, WIDTHS | {"setpoint": 1}, controls=["setpoint"])
    io.write_json(folder / "data/weld/dataset.json", ABOUT)
    io.write_table(folder / "data/weld/samples.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    return work(folder, *((verb, run) for verb in ("train_records", "evaluate_records") for run in RUNS))
