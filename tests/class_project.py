"""A small project of made-up records with kinds of fault, which has been through the verbs: models that tell them, one that does not, and the setting alone.

The setting is a control modality of its own; how far it tells the fault is a dial, `confound`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import torch

from stages import io
from stages.datasets.record_store import StoreWriter
from stages.datasets.records import Record, Tokens
from stages.seed import numpy_generator
from tests.fusion.synthetic import WIDTHS, samples
from tests.record_results import settings

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
    made = samples(0, count)
    random, kinds = numpy_generator(0, "setting"), list(WIDTHS)
    stored = {name: StoreWriter(folder / "features/weld" / name, {name: width}) for name, width in WIDTHS.items()}
    stored["setpoint"] = StoreWriter(folder / "features/weld/setpoint", {"setpoint": 1})
    for record in made:
        told = random.random() < confound
        place = kinds.index(record.fault) + 1 if record.fault else 0
        setting = Tokens(torch.tensor([[float(place if told else random.integers(4))]]), torch.zeros(1))
        for name, tokens in (record.modalities | {"setpoint": setting}).items():
            stored[name].add(Record(record.record_id, {name: tokens}, record.label, record.group, record.fault))
    for name, writer in stored.items():
        writer.close({"entry": {"name": name, "kind": "made-up"}, "weights": "none"} | ({"control": True} if name == "setpoint" else {}))
    split = {record.record_id: ("train", "train", "val", "test")[number // 3 % 4] for number, record in enumerate(made)}
    rows = [{"record_id": one.record_id, "split": split[one.record_id], "label": one.label, "group": one.group, "fault": one.fault} for one in made]
    io.write_json(folder / "data/weld/manifest.json", {"dataset": "weld", "rule": {}, "counts": {}, "samples": rows})
    io.write_json(folder / "data/weld/dataset.json", ABOUT)
    io.write_table(folder / "data/weld/samples.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    return work(folder, *((verb, run) for verb in ("train_records", "evaluate_records") for run in RUNS))


def work(folder: Path, *steps: tuple[str, ...]) -> Path:
    """Run verbs in the folder; the working directory is left as it was."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for verb, *arguments in steps:
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), (verb, arguments)
    finally:
        os.chdir(before)
    return folder
