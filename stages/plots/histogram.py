"""Where good and bad images score, and where the threshold cuts."""

from __future__ import annotations

import io

import numpy as np

GOOD, BAD, HELD_OUT = "#2a7f9e", "#d1495b", "#9aa5ab"


def score_histogram(normal: np.ndarray, anomalous: np.ndarray, held_out: np.ndarray, threshold: float | None, title: str) -> bytes:
    """PNG of the score distributions on shared bins. Each argument (N,); empty ones are left out."""
    from matplotlib.figure import Figure

    together = np.concatenate([normal, anomalous, held_out])
    edges = np.histogram_bin_edges(together, bins=40)
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.add_axes((0.05, 0.15, 0.92, 0.75))  # fixed: to find the margins, matplotlib would draw everything twice
    for scores, name, colour, filled in (
        (held_out, "good, held out of training", HELD_OUT, False),
        (normal, "good, test", GOOD, True),
        (anomalous, "anomalous, test", BAD, True),
    ):
        if len(scores):
            axes.hist(
                scores,
                edges,
                density=True,
                label=f"{name} ({len(scores)})",
                color=colour,
                alpha=0.65,
                histtype="stepfilled" if filled else "step",
            )
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set(title=title, xlabel="image score (raw)", ylabel="density", yticks=[])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return png.getvalue()
