"""A small project of signals: a pump with two sensors that belong together, and anomalies in what is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
STEPS = 1200

SERIES = """\
series:
  datasets:
    pump:
      adapter: {adapter}
      source: recordings
  models:
    classical:
      rows:
        random:
          detector: classical.random_score
        pca:
          detector: classical.pca
    clean:
      detector: classical.pca
      regime: unsup-clean
    blind:
      detector: classical.max_z
      regime: weak
  runs:
    pump-classical:
      dataset: pump
      model: classical
      code: stages/timeseries/classical
      maths: stages/timeseries/classical
    pump-clean:
      dataset: pump
      model: clean
      code: stages/timeseries/classical
      maths: stages/timeseries/classical
      seeds:
        - 0
    pump-blind:
      dataset: pump
      model: blind
      code: stages/timeseries/classical
      maths: stages/timeseries/classical
  protocol:
    seeds:
      - 0
      - 1
    train_fraction: 0.5
    val_fraction: 0.1
    false_alarm_quantiles:
      - 0.01
    vus_buffer: 20
    disturbed_steps: 20
    bootstrap_resamples: 100
"""


def record(folder: Path, seed: int = 0) -> None:
    """recordings/<category>/run.csv, where flow follows pressure but in the anomalies: one in train, three in test."""
    for number, category in enumerate(("old", "new")):
        draw = np.random.default_rng(seed + number)
        pressure = np.sin(np.arange(STEPS) / 7) + 0.1 * draw.normal(size=STEPS)
        flow, label = pressure + 0.1 * draw.normal(size=STEPS), np.zeros(STEPS, dtype=int)
        for start in (200, 800, 950, 1100):
            flow[start : start + 30] += 1.5
            label[start : start + 30] = 1
        path = folder / "recordings" / category / "run.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(pressure.tolist(), flow.tolist(), label.tolist(), strict=True)
        path.write_text("pressure,flow,label\n" + "".join(f"{one:.5f},{two:.5f},{truth}\n" for one, two, truth in rows))


def signal_project(folder: Path, adapter: str = "signal_folder") -> Path:
    """params.yaml and recordings: the repository's own settings, with one small data set of signals and none of images."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = (ROOT / "params.yaml").read_text().split("\nprotocol:", 1)[1]
    settings = settings.replace("enabled: true", "enabled: false").replace("processes: 2", "processes: 1").replace("seconds: 0.5", "seconds: 0.01")
    none = "".join(f"{section}: {{}}\n" for section in ("datasets", "encoders", "extracts", "models", "runs"))
    (folder / "params.yaml").write_text(f"{none}{SERIES.format(adapter=adapter)}protocol:{settings}")
    record(folder)
    return folder
