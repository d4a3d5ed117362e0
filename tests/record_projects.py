"""A small project of records: the generated station with few records and the smallest media, one of each of the four verbs' entries to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STATION = {
    "adapter": "station",
    "source": "station_code",
    "records": 60,
    "shifts": 12,
    "picture_size": 48,
    "film_size": 48,
    "frames": 4,
    "sound_seconds": 0.5,
    "sensor_rows": 60,
}
PROTOCOL = {
    "seeds": [0, 1],
    "split_seed": 0,
    "val_fraction": 0.2,
    "test_fraction": 0.25,
    "target_false_alarm_rate": 0.1,
    "bootstrap_resamples": 100,
}


def record_project(folder: Path, station: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Path:
    """params.yaml with the repository's own settings, no images, no signals, and the data set `station` of records.

    station: options that differ from STATION. sections: more of the section `records`, such as encoders={...}, extracts={...}, models={...},
    runs={...}, datasets={...} (beside station) or protocol={...} (entries that differ).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "station_code").mkdir(exist_ok=True)
    yaml = YAML(typ="safe")
    settings = yaml.load(ROOT / "params.yaml")
    settings |= {name: {} for name in ("datasets", "encoders", "extracts", "models", "runs")}
    settings.pop("series", None)
    settings["tracking"]["enabled"] = False
    settings["compute"]["processes"] = 1
    settings["bench"]["seconds"] = 0.01
    records: dict[str, Any] = {"datasets": {"station": STATION | (station or {})}, "protocol": PROTOCOL | sections.pop("protocol", {})}
    for name in ("datasets", "encoders", "extracts", "models", "runs"):
        records[name] = records.get(name, {}) | sections.pop(name, {})
    if sections:
        raise TypeError(f"no section {', '.join(sections)} of records")
    yaml.dump(settings | {"records": records}, folder / "params.yaml")
    return folder
