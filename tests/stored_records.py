"""Made-up records as a project's verbs find them: a store for each modality, a manifest that parts them by threes, and the verbs run in the folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.datasets.record_store import StoreWriter
from stages.datasets.records import Record


def store(folder: Path, dataset: str, made: Sequence[Record], widths: Mapping[str, int], controls: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Write stores and manifest; returns the manifest's rows. Of every four groups of three records two are learnt from, one is val, one test."""
    for name, width in widths.items():
        writer = StoreWriter(folder / "features" / dataset / name, {name: width})
        for record in made:
            if name in record.modalities:
                writer.add(record._replace(modalities={name: record.modalities[name]}))
        writer.close({"entry": {"name": name, "kind": "made-up"}, "weights": "none"} | ({"control": True} if name in controls else {}))
    rows = [
        {"record_id": one.record_id, "split": ("train", "train", "val", "test")[number // 3 % 4], "label": one.label, "group": one.group, "fault": one.fault}
        for number, one in enumerate(made)
    ]
    io.write_json(folder / "data" / dataset / "manifest.json", {"dataset": dataset, "rule": {}, "counts": {}, "samples": rows})
    return rows


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
