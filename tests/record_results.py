"""A finished result tree of records, written without any verb: what the leaderboard, the report and predictions read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.metrics import calibration
from stages.metrics.ranking import auroc, average_precision

ROOT = Path(__file__).parent.parent
MODALITIES = ("text", "image", "video", "audio", "series")
FAULTS = {
    "crack": (0.2, 1.0, 0.4, 0.0, 0.0),
    "bearing": (0.3, 0.0, 0.2, 1.0, 0.7),
    "overload": (0.0, 0.0, 0.3, 0.3, 1.0),
    "spatter": (0.5, 0.4, 1.0, 0.0, 0.0),
}
SEEDS = (0, 1)
ROWS = {  # model -> (group or itself, how well it sees each modality, what it loses where one is missing, supervised)
    "perceiver-moe": ("perceiver-moe", (0.7, 1, 0.9, 0.9, 1), 0.0, True),
    "no-modality-dropout": ("perceiver-controls", (0.7, 1, 0.9, 0.9, 1), 1.2, True),
    "concat-mlp": ("classical-records", (0.5, 0.8, 0.7, 0.7, 0.8), 0.6, True),
    "knn": ("classical-records", (0.2, 0.4, 0.3, 0.3, 0.4), 0.2, False),
    "random": ("classical-records", (0, 0, 0, 0, 0), 0.0, True),
}

RECORDS = """\
records:
  datasets:
    station:
      adapter: station
      source: .
  encoders:
    frames:
      kind: frames
  extracts:
    station-image:
      dataset: station
      modality: image
      encoder: frames
      code: stages/encoders/media/frames.py
  models:
    perceiver-moe:
      detector: perceiver_moe
      label: quick
    perceiver-controls:
      rows:
        no-modality-dropout:
          detector: perceiver_moe
    classical-records:
      rows:
        concat-mlp:
          detector: classical.concat_mlp
        knn:
          detector: classical.knn
        random:
          detector: classical.random
        yamnet-only:
          detector: classical.unimodal
  runs:
    station-perceiver-moe:
      dataset: station
      model: perceiver-moe
      code: stages/fusion/perceiver_moe.py
      maths: stages/fusion/perceiver
    station-perceiver-controls:
      dataset: station
      model: perceiver-controls
      code: stages/fusion/perceiver_moe.py
      maths: stages/fusion/perceiver
    station-classical-records:
      dataset: station
      model: classical-records
      code: stages/fusion/classical
      maths: stages/fusion/classical
  protocol:
    seeds:
      - 0
      - 1
    split_seed: 0
    val_fraction: 0.2
    test_fraction: 0.3
    target_false_alarm_rate: 0.05
    bootstrap_resamples: 100
"""


def settings(folder: Path, records: str = RECORDS) -> None:
    """params.yaml of a project that has records alone."""
    shared = (ROOT / "params.yaml").read_text().split("\nprotocol:", 1)[1].replace("enabled: true", "enabled: false")
    none = "".join(f"{section}: {{}}\n" for section in ("datasets", "encoders", "extracts", "models", "runs"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(f"{none}{records}protocol:{shared}")


def finished(folder: Path, count: int = 160) -> Path:
    """params.yaml, data/station, metrics/station of five rows and a refused one, metrics/bench. Returns the project's folder."""
    settings(folder)
    samples = _samples(folder, count)
    contents: dict[str, dict[str, Any]] = {}
    for number, (model, (group, *about)) in enumerate(ROWS.items()):
        place = folder / "metrics/station" / group / (model if model != group else "")
        contents.setdefault(group, {})[model] = _row(place, model, samples, *about, draw=np.random.default_rng([7, number]))
    contents["classical-records"]["yamnet-only"] = _about("yamnet-only") | {"refused": "E101 no weights of yamnet"}
    for group, rows in contents.items():
        whole = rows[group] if group in rows else {"dataset": "station", "model": group, "rows": rows}
        io.write_json(folder / f"metrics/station/{group}.json", whole)
    costs = {
        model: {
            "latency_ms_p50": 2.0 + 9 * ("p" in model[:2]),
            "throughput_per_s": 900.0,
            "parameters": 210_000,
            "flops": 3e7,
            "peak_rss_mb": 400.0,
        }
        for model in ROWS
    }
    about = {"system": "Linux", "cores": 2, "device": "cpu", "threads": 1, "torch": "2"}
    io.write_json(folder / "metrics/bench/station.json", {"dataset": "station", "machine": about, "models": costs})
    return folder


def _about(model: str) -> dict[str, Any]:
    return {
        "dataset": "station",
        "model": model,
        "label": "quick" if model == "perceiver-moe" else "",
        "seeds": list(SEEDS),
        "supervised": model != "knn", "modalities": list(MODALITIES),
    } | ({"blind": "looks at nothing"} if model in ("random", "presence") else {})


def _samples(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows of the manifest, with what every modality shows and whether it is there; a picture of each."""
    from PIL import Image

    draw = np.random.default_rng(3)
    samples = []
    for number in range(count):
        fault = list(FAULTS)[number % len(FAULTS)] if number % 5 < 2 else ""
        present = draw.random(len(MODALITIES)) > 0.15
        present[int(draw.integers(len(MODALITIES)))] = True
        shown = draw.normal(size=len(MODALITIES)) * 0.8 + 2.2 * np.array(FAULTS.get(fault, (0,) * 5)) * draw.uniform(0.4, 1.2)
        split = ("train", "val", "test", "test")[number % 7 % 4]
        samples.append(
            {
                "record_id": f"r{number:04d}",
                "split": split,
                "label": int(bool(fault)),
                "fault": fault,
                "group": f"shift-{number // 8}",
                "shown": shown,
                "present": present,
            }
        )
        if present[1]:
            path = folder / f"data/station/media/r{number:04d}/image.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            surface = 140 + 18 * draw.normal(size=(48, 48, 1)) + 30 * np.sin(np.arange(48) / 6)[:, None, None]
            if fault == "crack":
                surface[10:40, 22:25] -= 90
            Image.fromarray(surface.clip(0, 255).astype(np.uint8).repeat(3, axis=2)).save(path)
    kept = ("record_id", "split", "label", "group", "fault")
    rows = [{name: sample[name] for name in kept} for sample in samples]
    counts = {
        split: {
            "normal": sum(r["split"] == split and not r["label"] for r in rows),
            "anomalous": sum(r["split"] == split and r["label"] for r in rows),
        }
        for split in ("train", "val", "test")
    }
    io.write_json(folder / "data/station/manifest.json", {"dataset": "station", "rule": {}, "counts": counts, "samples": rows})
    io.write_json(
        folder / "data/station/dataset.json",
        {
            "dataset": "station",
            "adapter": "station",
            "root": "data/station/media",
            "modalities": list(MODALITIES),
            "about": {"licence": "Apache-2.0", "kind": "generated"},
            "problems": [],
        },
    )
    image = [f"{s['record_id']}/image.png" if s["present"][1] else None for s in samples]
    table = {name: [row[name] for row in rows] for name in kept} | {"image_path": image}
    io.write_table(folder / "data/station/samples.parquet", table)
    return samples


def _logit(samples: list[dict[str, Any]], sight: Any, given: np.ndarray, loses: float, noise: np.ndarray) -> np.ndarray:
    """(N,): the sum of what the modalities given and present show; worse by `loses` for each one that is absent."""
    there = np.stack([sample["present"] for sample in samples]) & given
    shown = np.stack([sample["shown"] for sample in samples]) * np.asarray(sight)
    return (shown * there).sum(1) - 1.5 + noise * (0.4 + loses * (~there).sum(1))


def _cell(value: float, spread: float = 0.03) -> dict[str, float]:
    return {"value": round(value, 4), "low": round(max(0.0, value - spread), 4), "high": round(min(1.0, value + spread), 4)}


def _row(
    place: Path, model: str, samples: list[dict[str, Any]], sight: Any, loses: float, supervised: bool, draw: np.random.Generator
) -> dict[str, Any]:
    label = np.array([sample["label"] for sample in samples])
    split = np.array([sample["split"] for sample in samples])
    noise = draw.normal(size=len(samples)) * (3 if model == "random" else 1)
    every = np.ones(len(MODALITIES), dtype=bool)
    scores = {seed: _logit(samples, sight, every, loses, noise + 0.1 * draw.normal(size=len(samples))) for seed in SEEDS}
    score, test = scores[0], split == "test"
    threshold = float(np.quantile(score[(split == "val") & (label == 0)], 0.95))
    probability = 1 / (1 + np.exp(-score / 1.6))
    rows = [(seed, place_) for seed in SEEDS for place_ in range(len(samples)) if split[place_] != "train"]
    at = [place_ for _, place_ in rows]
    columns = {name: [samples[place_][name] for place_ in at] for name in ("record_id", "split", "label", "fault", "group")}
    columns |= {"seed": [seed for seed, _ in rows], "score": [float(scores[seed][place_]) for seed, place_ in rows]}
    columns["probability"] = [float(probability[place_]) if supervised else None for place_ in at]
    io.write_table(place / "predictions.parquet", columns)
    achieved = {"false_alarms_per_1000": 50.0, "false_alarms_low": 12.0, "false_alarms_high": 110.0, "n_normal": 40}
    conformal = {"method": "conformal", "value": threshold, "target": 0.05, "achieved": achieved, "reason": None, "note": None}
    temperatures = [1.6 if supervised else None] * len(SEEDS)
    stored = {
        "default": "conformal",
        "seeds": list(SEEDS),
        "temperatures": temperatures,
        "thresholds": {"conformal": [conformal] * len(SEEDS)},
    }
    io.write_json(place / "thresholds.json", {"all": stored})
    _subsets(place, samples, sight, loses, noise, label, test)
    lines = [
        f"{fault},{int(sum(own))},{auroc(score[own | normal], label[own | normal]):.4f},0.5,1.0"
        for fault in FAULTS
        for own, normal in [(test & np.array([s["fault"] == fault for s in samples]), test & (label == 0))]
    ]
    io.write_text(place / "faults.csv", "\n".join(["fault,records,roc_auc,low,high", *lines]) + "\n")
    if supervised:
        _explained(place, samples, sight, score, probability, label, test)
    area = auroc(score[test], label[test])
    io.write_table(
        place / "draws.parquet",
        {
            "category": ["all"],
            "metric": ["roc_auc"],
            "value": [area],
            "drawn": [(area + 0.02 * np.random.default_rng(1).normal(size=100) + 0.01 * draw.normal(size=100)).tolist()],
        },
    )
    flagged = score[test] > threshold
    mean = {
        "roc_auc": _cell(area),
        "pr_auc": _cell(average_precision(score[test], label[test])),
        "missing_auc": _cell(area - 0.08 * (1 + loses)),
        "recall": _cell(float(flagged[label[test] == 1].mean())),
        "false_alarm_rate": _cell(float(flagged[label[test] == 0].mean())),
        "f1": _cell(0.8),
        "fnr_at_fpr_05": _cell(0.3),
    }
    mean["ece"] = _cell(0.05) if supervised else {"value": None, "reason": "the score is no probability"}
    mean["ece_before"] = _cell(0.12) if supervised else mean["ece"]
    return _about(model) | {"averaging": "one category", "categories": {"all": mean}, "mean": mean}


def _subsets(place: Path, samples: Any, sight: Any, loses: float, noise: np.ndarray, label: np.ndarray, test: np.ndarray) -> None:
    lines = ["modalities,count,share_missing,roc_auc,pr_auc,low,high"]
    for size in range(1, len(MODALITIES) + 1):
        for chosen in itertools.combinations(range(len(MODALITIES)), size):
            given = np.isin(np.arange(len(MODALITIES)), chosen)
            value = auroc(_logit(samples, sight, given, loses, noise)[test], label[test])
            name = "+".join(MODALITIES[one] for one in chosen)
            lines.append(f"{name},{size},{1 - size / 5:.4f},{value:.4f},{value:.4f},{value - 0.04:.4f},{min(1, value + 0.04):.4f}")
    io.write_text(place / "subsets.csv", "\n".join(lines) + "\n")


def _explained(
    place: Path, samples: Any, sight: Any, score: np.ndarray, probability: np.ndarray, label: np.ndarray, test: np.ndarray
) -> None:
    shown = np.stack([sample["shown"] * sample["present"] for sample in samples]) * np.asarray(sight)
    at = np.flatnonzero(test)
    columns = {"record_id": [samples[one]["record_id"] for one in at], "label": label[at].tolist(), "score": score[at].tolist()}
    io.write_table(place / "contributions.parquet", columns | {name: shown[at, number].tolist() for number, name in enumerate(MODALITIES)})

    def bins(values: np.ndarray) -> dict[str, Any]:
        found = calibration.reliability(values[at], label[at], 8)
        return {"ece": calibration.ece(values[at], label[at]), **{name: column.tolist() for name, column in found._asdict().items()}}

    before, after = bins(1 / (1 + np.exp(-score))), bins(probability)
    io.write_json(place / "calibration.json", {"temperature": 1.6, "reason": None, "note": None, "before": before, "after": after})
    if "perceiver" in place.as_posix():
        usage = np.random.default_rng(0).dirichlet([4, 4, 4, 4], size=2).tolist()
        told = {"present": {name: 0.01 * number for number, name in enumerate(MODALITIES)}, "class": 0.03}
        layers = [{"first_choice": shares, "mean_gate": shares, "entropy": 0.9, "information": told} for shares in usage]
        io.write_json(place / "experts.json", {"experts": 4, "layers": layers})
