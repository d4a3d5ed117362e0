"""A small project of made-up tokens that has been through the verbs of records, with two models; only its embeddings are not from any media."""

from __future__ import annotations

from pathlib import Path

from tests.fusion.synthetic import WIDTHS, samples
from tests.record_results import settings
from tests.stored_records import store, work

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
    store(folder, "parts-seen", samples(0, count), WIDTHS)
    return work(folder, *((verb, run) for verb in ("train_records", "evaluate_records") for run in ("seen-plain", "seen-presence")))
