"""What storing features as float16, or not at all, changes: scores, AUROC and space on `parts`, against float32, in one run.

    python -m benchmarks.feature_forms --out docs/feature_forms.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.parts_runs import MODELS, ROOT, finished_run
from stages import io

FORMS = ("float32", "float16", "streamed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "feature_forms.md")
    out = parser.parse_args().out.resolve()
    text = table({form: run(form) for form in FORMS})
    io.write_text(out, text)
    print(text)


def run(form: str) -> dict[str, dict]:
    """By model: mean AUROC, AUPRO and every test score; and the bytes of the store."""
    with finished_run({"form: float32": f"form: {form}"}) as folder:
        found: dict[str, dict] = {"bytes": sum(path.stat().st_size for path in (folder / "features/parts/lite0").glob("*.pt"))}
        for model in MODELS:
            rows = io.read_table(folder / "metrics/parts" / model / "predictions.parquet")
            scores = {row["sample_id"]: row["image_score"] for row in rows if row["split"].startswith("test")}
            found[model] = {"mean": io.read_json(folder / "metrics/parts" / f"{model}.json")["mean"], "scores": scores}
        return found


def table(runs: dict[str, dict]) -> str:
    lines = [
        "# What the form of stored features changes",
        "",
        "`parts`, efficientnet-lite0, one seed. The change of a score is relative to the same image's score from float32 features; the largest of all test",
        "images is shown.",
        "",
        "| form | stored | model | image AUROC | AUPRO | largest change of a score |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for form, found in runs.items():
        for model in MODELS:
            exact, scores, mean = runs["float32"][model]["scores"], found[model]["scores"], found[model]["mean"]
            change = max(abs(scores[sample] - exact[sample]) / abs(exact[sample]) for sample in exact)
            figures = f"{mean['image_auroc']['value']:.4f} | {mean['aupro']['value']:.4f} | {change:.1e}"
            lines.append(f"| {form} | {found['bytes'] / 1e6:.0f} MB | {model} | {figures} |")
    return "\n".join([*lines, "", "Made by `python -m benchmarks.feature_forms`.", ""])


if __name__ == "__main__":
    main()
