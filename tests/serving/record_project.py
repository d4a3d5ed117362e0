"""A small project of made-up tokens that has been through the verbs of records, with two models; only its embeddings are not from any media."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from stages import io
from stages.datasets.record_store import StoreWriter
from tests.fusion.synthetic import WIDTHS, samples
from tests.record_results import settings

RECORDS = """\
records:
  datasets:
    parts-seen:
      adapter: media_folder
      source: media
  encoders: {}
  extracts: {}
  models:
    plain:
      rows:
        logits:
          detector: classical.mean_logit
        knn:
          detector: classical.knn
    presence:
      detector: classical.presence
  runs:
    seen-plain:
      dataset: parts-seen
      model: plain
      code: stages/fusion/classical
      maths: stages/fusion/classical
    seen-presence:
      dataset: parts-seen
      model: presence
      code: stages/fusion/classical/presence.py
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


def trained(folder: Path, count: int = 180) -> Path:
    """The project; its working directory is left as it was."""
    settings(folder, RECORDS)
    made = samples(0, count)
    for name, width in WIDTHS.items():
        writer = StoreWriter(folder / "features/parts-seen" / name, {name: width})
        for record in made:
            if name in record.modalities:
                writer.add(record._replace(modalities={name: record.modalities[name]}))
        writer.close({"entry": {"name": name, "kind": "made-up"}, "weights": "none"})
    split = {record.record_id: ("train", "train", "val", "test")[number // 3 % 4] for number, record in enumerate(made)}
    rows = [
        {"record_id": one.record_id, "split": split[one.record_id], "label": one.label, "group": one.group, "fault": one.fault}
        for one in made
    ]
    io.write_json(folder / "data/parts-seen/manifest.json", {"dataset": "parts-seen", "rule": {}, "counts": {}, "samples": rows})
    before = Path.cwd()
    os.chdir(folder)
    try:
        for verb in ("train_records", "evaluate_records"):
            for run in ("seen-plain", "seen-presence"):
                assert not importlib.import_module(f"stages.{verb}").main(run), (verb, run)
    finally:
        os.chdir(before)
    return folder
