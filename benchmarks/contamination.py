"""What bad images among the training images cost: `parts` at 0, 2, 5 and 10 % contamination, every stage run anew in a temporary folder.

    python -m benchmarks.contamination --out docs/contamination

writes docs/contamination.md (the table) and docs/contamination.png (the curve). One seed; the intervals are over images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.parts_runs import MODELS, ROOT, finished_run
from stages import io

LEVELS = (0.0, 0.02, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "contamination")
    out = parser.parse_args().out.resolve()
    curve = {level: run(level) for level in LEVELS}
    io.write_text(out.with_suffix(".md"), table(curve))
    io.write_bytes(out.with_suffix(".png"), picture(curve))
    print(table(curve))


def run(level: float) -> dict[str, dict]:
    """Results of both models at one level: the mean cells, and how many of the planted images are among the most suspicious ones."""
    with finished_run({"contamination: 0.0": f"contamination: {level}"}) as folder:
        return {model: _summary(folder, model) for model in MODELS}


def _summary(folder: Path, model: str) -> dict:
    samples = io.read_json(folder / "data/parts/manifest.json")["samples"]
    planted = {sample["sample_id"] for sample in samples if sample["split"] == "train" and sample["label"] == 1}
    stored = io.read_json(folder / "metrics/parts" / model / "thresholds.json")
    suspicious = {row["sample_id"] for category in stored.values() for row in category["suspicious_training_images"]}
    mean = io.read_json(folder / "metrics/parts" / f"{model}.json")["mean"]
    return {"mean": mean, "planted": len(planted), "listed": len(planted & suspicious)}


def table(curve: dict[float, dict[str, dict]]) -> str:
    lines = [
        "# What bad training images cost",
        "",
        "`parts`, mean over four categories of 60 training images, efficientnet-lite0, one seed, 95 % interval over test images. Recall and",
        "false alarms are at the default threshold, which is fitted on the contaminated images as it would be for a user who does not know.",
        "`listed` counts planted images among the ten most suspicious training images of each category.",
        "",
        "| bad in train | model | image AUROC | AUPRO | recall | false alarms | planted | listed |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for level, models in curve.items():
        for model, found in models.items():
            mean = found["mean"]
            auroc = mean["image_auroc"]
            interval = f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]"
            rates = " | ".join(f"{mean[name]['value']:.3f}" for name in ("aupro", "recall", "false_alarm_rate"))
            lines.append(f"| {level:.0%} | {model} | {interval} | {rates} | {found['planted']} | {found['listed']} |")
    return "\n".join([*lines, "", "![The curve](contamination.png)", "", "Made by `python -m benchmarks.contamination`.", ""])


def picture(curve: dict[float, dict[str, dict]]) -> bytes:
    import io as streams

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = [100 * level for level in curve]
    for model in MODELS:
        cells = [models[model]["mean"] for models in curve.values()]
        auroc = [cell["image_auroc"]["value"] for cell in cells]
        left.plot(levels, auroc, marker="o", label=model)
        left.fill_between(
            levels, [cell["image_auroc"]["low"] for cell in cells], [cell["image_auroc"]["high"] for cell in cells], alpha=0.15
        )
        right.plot(levels, [cell["recall"]["value"] for cell in cells], marker="o", label=model)
    left.set(xlabel="bad images in train, %", ylabel="image AUROC")
    right.set(xlabel="bad images in train, %", ylabel="recall at the default threshold", ylim=(0, 1))
    left.legend(frameon=False)
    png = streams.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return png.getvalue()


if __name__ == "__main__":
    main()
