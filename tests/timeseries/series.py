"""Small made-up signals: slow waves that drive each other, and noise."""

import numpy as np

from stages.datasets.recordings import Segment


def values(steps: int, variables: int = 3, seed: int = 0) -> np.ndarray:
    """(steps, variables) float32, each variable with a mean and a scale of its own."""
    random = np.random.default_rng(seed)
    phase = np.arange(steps)[:, None] / 9 + random.uniform(0, 6, (1, 1)) + np.arange(variables)
    signal = np.sin(phase) + 0.5 * np.sin(0.37 * phase) + 0.1 * random.standard_normal((steps, variables))
    return (signal * np.arange(1, variables + 1) + 10 * np.arange(variables)).astype(np.float32)


def segment(array: np.ndarray, label: np.ndarray | None = None, start: int = 0) -> Segment:
    return Segment("made-up/one", start, array, label)
