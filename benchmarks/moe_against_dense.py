"""Is the mixture of experts better than a dense layer, and what does modality dropout buy when a modality is gone?

For every variant and seed a Perceiver is fitted on train and judged on test: AUROC with all modalities and the mean AUROC with each one taken away. The mixture
is compared with each other variant on the same records: difference of mean AUROC with a 95 % interval by bootstrap over groups and seeds. Where the
interval holds zero, nothing is claimed.

    python -m benchmarks.moe_against_dense --project . --dataset station --seeds 0 1 2 3 4
    python -m benchmarks.moe_against_dense --records 600

--project: a folder with data/<dataset>/manifest.json and features/<dataset>/<modality>/. Without it, records are made up: see `made_up`.
Options of the detector follow --options, e.g. --options width=64 latents=8 epochs=20.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stages import io
from stages.datasets.record_store import RecordStore, Subset
from stages.datasets.records import Record, Records, RecordSet, Tokens, batches, packed
from stages.fusion.perceiver.tokens import without
from stages.fusion.perceiver_moe import PerceiverMoE
from stages.metrics.bootstrap import paired_difference
from stages.metrics.counts import auroc_of_counts
from stages.metrics.ranking import auroc
from stages.training import Run

SMALL = {"width": 64, "latents": 8, "blocks": 2, "hidden": 128, "batch_size": 32, "learning_rate": 1e-3, "epochs": 15}
VARIANTS: dict[str, dict[str, Any]] = {
    "moe": {},
    "dense, equal total": {"ffn": "dense", "match": "total"},
    "dense, equal active": {"ffn": "dense", "match": "active"},
    "uniform routing": {"routing": "uniform"},
    "no modality dropout": {"modality_dropout": 0.0},
}
WIDTHS = {"text": 24, "image": 48, "video": 48, "audio": 32, "series": 16}
FAULTS = {"crack": ("image", "video"), "noise": ("audio", "series"), "slip": ("series", "video"), "mark": ("text", "image")}


class Splits(NamedTuple):
    train: RecordSet
    val: RecordSet
    test: Records
    group: list[str]  # of the test records


def of_project(project: Path, dataset: str) -> Splits:
    """What the stages of a project have left. Modalities that were refused are left out."""
    samples = io.read_json(project / "data" / dataset / "manifest.json")["samples"]
    folders = sorted(path.parent for path in (project / "features" / dataset).glob("*/records.json"))
    stores = [RecordStore(folder) for folder in folders if "refused" not in io.read_json(folder / "records.json")]
    chosen = {split: [row for row in samples if row["split"] == split] for split in ("train", "val", "test")}
    sets = [Subset(stores, [row["record_id"] for row in rows], torch.tensor([row["label"] for row in rows], dtype=torch.int8)) for rows in chosen.values()]
    return Splits(sets[0], sets[1], sets[2].whole(), [str(row["group"]) for row in chosen["test"]])


def made_up(count: int, missing: float = 0.15, strength: float = 0.8) -> Splits:
    """Four kinds of fault, each visible in two modalities, and two operating states in which faults show more or less.

    Groups of ten records share an offset. Half train, a fifth validation, the rest test, by group.
    """
    draw = torch.Generator().manual_seed(0)
    ways = {(fault, name): torch.randn(width, generator=draw) for fault in (*FAULTS, "state") for name, width in WIDTHS.items()}
    ways = {pair: way / way.norm() for pair, way in ways.items()}
    found = []
    for number in range(count):
        if number % 10 == 0:
            shift = {name: 0.3 * torch.randn(width, generator=draw) for name, width in WIDTHS.items()}
        label, fault = int(torch.rand((), generator=draw) < 0.3), list(FAULTS)[int(torch.randint(len(FAULTS), (), generator=draw))]
        state = float(torch.randint(2, (), generator=draw)) * 2 - 1
        gone = torch.rand(len(WIDTHS), generator=draw) < missing
        gone[int(torch.randint(len(WIDTHS), (), generator=draw))] = False
        modalities = {}
        for name, absent in zip(WIDTHS, gone.tolist()):
            length = int(torch.randint(2, 12, (), generator=draw))
            values = torch.randn(length, WIDTHS[name], generator=draw) + shift[name] + state * ways["state", name]
            seen = label * strength * (1.25 + 0.75 * state) if name in FAULTS[fault] else 0.0  # a fault shows four times as much in one state as in the other
            if not absent:
                modalities[name] = Tokens(values + seen * ways[fault, name], torch.linspace(0, 1, length))
        found.append(Record(f"r{number:05d}", modalities, label, f"g{number // 10}", fault if label else ""))
    first, second = count // 20 * 10, count // 10 * 7
    train, val, test = found[:first], found[first:second], found[second:]
    return Splits(packed(train, WIDTHS), packed(val, WIDTHS), packed(test, WIDTHS), [record.group for record in test])


def scores(model: PerceiverMoE, test: Records) -> dict[str, np.ndarray]:
    """Scores of the test records with all modalities ("") and without each one; records that have no other keep it."""
    found, present = {"": test}, test.present
    for number, name in enumerate(test.tokens):
        bare = (present.sum(1) == 1) & present[:, number]
        found[name] = test._replace(tokens={**test.tokens, name: without(test.tokens[name], ~bare)})
    return {name: torch.cat([model.score(part) for part in batches(records)]).numpy() for name, records in found.items()}


def judged(found: dict[str, list[dict[str, np.ndarray]]], splits: Splits, resamples: int) -> dict[str, Any]:
    label = splits.test.label.numpy()
    rows, names = {}, list(splits.test.tokens)
    for variant, seeds in found.items():
        full = [auroc(one[""], label) for one in seeds]
        less = [np.mean([auroc(one[name], label) for name in names]) for one in seeds]
        mean, missing = float(np.mean(full)), float(np.mean(less))
        rows[variant] = {"auroc": mean, "spread": float(np.std(full)), "one_missing": missing, "lost": mean - missing}
        print(f"{variant:22s} AUROC {mean:.4f} (sd {np.std(full):.4f})  one missing {missing:.4f}  lost {mean - missing:.4f}")
    compared = {}
    for one, other in itertools.product(["moe"], [name for name in found if name != "moe"]):
        first, second = (np.stack([seed[""] for seed in found[name]]) for name in (one, other))
        difference = paired_difference(first, second, label, splits.group, auroc_of_counts, resamples)
        compared[f"{one} - {other}"] = difference._asdict() | {"tied": difference.holds_zero}
        verdict = "tied" if difference.holds_zero else "better" if difference.value > 0 else "worse"
        print(f"{one} - {other}: {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] {verdict}")
    return {"variants": rows, "differences": compared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="folder of a project; without it, records are made up")
    parser.add_argument("--dataset", default="station")
    parser.add_argument("--records", type=int, default=800, help="how many records are made up")
    parser.add_argument("--missing", type=float, default=0.15, help="share of modalities that made-up records lack")
    parser.add_argument("--strength", type=float, default=0.8, help="how far a fault moves a token of a made-up record")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="where to write the figures, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = SMALL | {name: json.loads(value) for name, value in (one.split("=", 1) for one in given.options)}
    splits = of_project(given.project, given.dataset) if given.project else made_up(given.records, given.missing, given.strength)
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for variant, seed in itertools.product(given.variants, given.seeds):
        model = PerceiverMoE(**{**options, **VARIANTS[variant]}).fit(splits.train, splits.val, Run(seed=seed, quiet=True))
        found.setdefault(variant, []).append(scores(model, splits.test))
        parameters = sum(one.numel() for one in model.parameters())
        print(f"{variant}, seed {seed}: AUROC {auroc(found[variant][-1][''], splits.test.label.numpy()):.4f}, {parameters} parameters", flush=True)
    figures = judged(found, splits, given.resamples)
    if given.out:
        io.write_json(given.out, {"options": options, "seeds": given.seeds, **figures})


if __name__ == "__main__":
    main()
