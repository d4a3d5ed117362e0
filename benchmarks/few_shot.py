"""How many good images are enough: AnomalyDINO and PatchCore on 1 to 16 shots of the built-in data sets, written to docs/few_shot.md and .svg.

Runs in a project whose features are extracted (`dvc repro extract manifest`). The reference images are drawn as a model with `shots` draws them in
`stages.train`: the same for every method, five draws, fewer among more.

    python -m benchmarks.few_shot --out docs/few_shot.md
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages import engine, io, params
from stages.datasets.samples import manifest_samples
from stages.datasets.shots import references
from stages.serving.leaderboard import cell

SHOTS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2, 3, 4)
ENCODER = "lite0"
# Image scores do not depend on the blur of maps, which takes most of the time.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AnomalyDINO lite0, nearest": ("few_shot.anomalydino", {"layers": ["layer3"], "blur_sigma": 0.0}),
    "AnomalyDINO lite0, subspace": ("few_shot.anomalydino", {"layers": ["layer3"], "head": "subspace", "blur_sigma": 0.0}),
    "PatchCore lite0, all patches": ("memory_bank.patchcore", {"layers": ["layer3"], "coreset_ratio": 1.0, "search": "torch", "blur_sigma": 0.0}),
}


def scores(dataset: str, category: str, method: str, shots: int) -> np.ndarray:
    """(seeds, N) of the test images in the order of the manifest."""
    from stages.detectors import build
    from stages.detectors.prediction import predictions
    from stages.encoders.batches import open_batches
    from stages.training import Run

    settings = params.load()
    samples = [sample for sample in manifest_samples(dataset) if sample["category"] == category]
    train, test = ([sample for sample in samples if sample["split"] == split] for split in ("train", "test"))
    detector, options = METHODS[method]
    found = []
    for seed in SEEDS:
        model = build(detector, options, at=("models", method))
        known, new = (open_batches(dataset, ENCODER, rows, model.needs.layers, settings) for rows in (references(train, shots, seed), test))
        model.fit(known, None, Run(seed=seed, quiet=True))
        found.append(np.concatenate([prediction.image_score.numpy() for _, prediction in predictions(model, new)]))
    return np.stack(found)


def curves(dataset: str) -> Iterator[dict[str, Any]]:
    """One row for each method and number of shots: the mean image AUROC over categories with its interval over images and draws."""
    from stages.metrics.bootstrap import bootstrap_draws, mean_interval
    from stages.metrics.ranking import IMAGE_METRICS

    test = [sample for sample in manifest_samples(dataset) if sample["split"] == "test"]
    categories = sorted({sample["category"] for sample in test})
    keys = [(method, shots, category) for method in METHODS for shots in SHOTS for category in categories]
    units = [
        engine.Unit(f"{method}/{shots}/{category}", {"dataset": dataset, "category": category, "method": method, "shots": shots})
        for method, shots, category in keys
    ]
    outcomes = dict(zip(keys, engine.run(scores, units, processes=2, threads=1, preload=("torch",)), strict=True))
    for method in METHODS:
        for shots in SHOTS:
            draws = []
            for category in categories:
                outcome, own = outcomes[method, shots, category], [sample for sample in test if sample["category"] == category]
                if outcome.error:
                    raise RuntimeError(outcome.error)
                label, group = np.array([sample["label"] for sample in own]), [sample["group"] for sample in own]
                draws.append(bootstrap_draws(outcome.value, label, group, IMAGE_METRICS)["image_auroc"])
            yield {"dataset": dataset, "method": method, "shots": shots, **mean_interval(draws)._asdict()}


def chart(rows: list[dict[str, Any]]) -> str:
    import altair as alt
    import vl_convert

    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("shots:O", title="normal images to learn from", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("method:N", title=None, legend=alt.Legend(orient="bottom", labelLimit=300)),
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="image AUROC", scale=alt.Scale(zero=False)), y2="high:Q")
    line = base.mark_line(point=True).encode(y="value:Q")
    picture = (
        (band + line).properties(width=300, height=220).facet(column=alt.Column("dataset:N", title=None)).resolve_scale(y="independent")
    )
    return vl_convert.vegalite_to_svg(picture.to_json())


def page(rows: list[dict[str, Any]], svg: str) -> str:
    import torch

    about = "Image AUROC of models that learn from 1 to 16 good images of each category, the same images for every method."
    lines = ["# How many good images are enough", "", about, "", f"![Image AUROC over shots, with 95 % bands]({svg})", ""]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        lines += [
            f"**{dataset}**, mean image AUROC over categories",
            "",
            f"| method | {' | '.join(map(str, SHOTS))} |",
            "| --- |" + " ---: |" * len(SHOTS),
        ]
        for method in METHODS:
            lines.append(
                f"| {method} | " + " | ".join(cell(row) for row in rows if (row["dataset"], row["method"]) == (dataset, method)) + " |"
            )
        lines.append("")
    return "\n".join([*lines, NOTES.format(machine=f"{platform.machine()}, torch {torch.__version__}"), ""])


NOTES = """\
- Five draws of reference images; intervals are 95 % bootstrap intervals over test images and draws. {machine}.
- All methods see layer 3 of the built-in EfficientNet-Lite0 at 224 pixels, not DINOv2, whose weights are not built in: figures of the papers are those
  of DINOv2 (one shot: .966 on MVTec AD, .874 on VisA for AnomalyDINO-S).
- In params.yaml: `shots: 4` in any model's entry, or a model with `detector: few_shot.anomalydino`, with `head: subspace` for the subspace. The default run
  has both heads with four shots as rows of the group `few-shot`.
- Made by `python -m benchmarks.few_shot --out docs/few_shot.md` in a project that `dvc repro` has run in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--datasets", nargs="*", default=["solar", "parts"])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for dataset in arguments.datasets for row in curves(dataset)]
    picture = arguments.out.with_suffix(".svg")
    io.write_text(picture, chart(rows))
    io.write_text(arguments.out, page(rows, picture.name))
    print(arguments.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
