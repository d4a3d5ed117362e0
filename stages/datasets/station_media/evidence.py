"""What each medium can know of a fault: a table of numbers that is drawn before anything is rendered, and whose likelihoods are exact.

For each kind of fault k and modality m there is one number x, standard normal for a sound part. A fault of kind k and grade g adds
GRADES[g] * visible[k, m] to its own row. Renderers see x and what has nothing to do with the label, never the label itself; so by the
data-processing inequality no model of a modality can beat the likelihood ratio of its column, and none of all modalities that of the table.
The inspector is coarser: of each kind there is no mention, a hesitant one or a plain one, by where x lies among MENTIONS.

K kinds, M modalities, G grades, n records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import log_ndtr, logsumexp

from stages.datasets.records import MODALITIES
from stages.datasets.samples import DataError
from stages.params import nearest
from stages.seed import numpy_generator

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("crack", "burn", "chatter", "bearing", "coolant", "tool", "wobble", "burr")
GRADES = (3.5, 5.0, 6.5)  # in deviations of a sound part, at full visibility
MENTIONS = (2.1, 3.1)  # where a note becomes hesitant, and where plain
POPULATION = 20_000  # records that a table alone is drawn for, to know an AUROC of the population

COMPLEMENTARY: dict[str, dict[str, float]] = {  # the rest is 0: not to be seen at all
    "crack": {"image": 1.0, "text": 0.6},
    "burn": {"image": 0.8, "video": 0.5, "series": 0.4, "text": 0.5},
    "chatter": {"audio": 1.0, "series": 0.6, "image": 0.4},
    "bearing": {"audio": 0.9, "series": 0.4, "text": 0.4},
    "coolant": {"series": 1.0, "video": 0.6},
    "tool": {"video": 1.0, "audio": 0.7},
    "wobble": {"video": 0.9, "series": 0.5, "image": 0.2},
    "burr": {"text": 0.9, "image": 0.5},
}
PRESETS: dict[str, dict[str, dict[str, float]]] = {
    "complementary": COMPLEMENTARY,
    "faint": {kind: {name: share / 2 for name, share in row.items()} for kind, row in COMPLEMENTARY.items()},
    "camera": {kind: {"image": 1.0} for kind in KINDS},  # one modality shows all, the others nothing
}


def visibility(preset: str) -> Array:
    """(K, M) in 0..1, columns in the order of MODALITIES. Raises DataError for an unknown preset."""
    if preset not in PRESETS:
        raise DataError(f"station: no visibility {preset!r}{nearest(preset, PRESETS)}")
    return np.array([[PRESETS[preset][kind].get(name, 0.0) for name in MODALITIES] for kind in KINDS])


def draw_evidence(kind: Array, grade: Array, visible: Array, draw: np.random.Generator) -> Array:
    """(n, K, M). kind: (n,) index of the fault, -1 for a sound part; grade: (n,) index; visible: (K, M)."""
    x = draw.standard_normal((len(kind), *visible.shape))
    bad = np.flatnonzero(kind >= 0)
    x[bad, kind[bad]] += np.array(GRADES)[grade[bad], None] * visible[kind[bad]]
    return x


def log_ratios(x: Array, visible: Array, present: Array | None = None) -> dict[str, Array]:
    """By modality, and "all" for those present together, log p(x | fault) - log p(x | sound): (n,), 0 where nothing is present.

    Kinds and grades are equally likely. present: (n, M) bool; all by default.
    """
    term = _terms(x, visible)  # (n, M, K, G)
    present = np.ones(term.shape[:2], bool) if present is None else present
    term = np.where(present[:, :, None, None], term, 0.0)
    ratio = {name: _mixed(term[:, at]) for at, name in enumerate(MODALITIES)}
    return ratio | {"all": _mixed(term.sum(1))}


def _mixed(term: Array) -> Array:
    """(n, K, G) to (n,)."""
    return logsumexp(term, axis=(1, 2)) - np.log(term.shape[1] * term.shape[2])


def _terms(x: Array, visible: Array) -> Array:
    """(n, M, K, G): the log-likelihood ratio of what modality m shows, were the fault k of grade g."""
    mean = visible.T[:, :, None] * np.array(GRADES)  # (M, K, G)
    seen = np.swapaxes(x, 1, 2)[..., None]  # (n, M, K, 1)
    term = mean * seen - mean**2 / 2
    note = MODALITIES.index("text")
    level = mention(x[:, :, note])
    term[:, note] = _log_share(level, mean[note]) - _log_share(level, np.zeros_like(mean[note]))
    return term


def mention(x: Array) -> Array:
    """0 none, 1 hesitant, 2 plain; of any shape."""
    return np.digitize(x, MENTIONS)


def _log_share(level: Array, mean: Array) -> Array:
    """(n, K, G): log probability of the level (n, K) where x is normal around mean (K, G)."""
    low, high = (border - mean for border in MENTIONS)
    none, plain = log_ndtr(low), log_ndtr(-high)
    hesitant = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
    at = level[..., None]
    return np.where(at == 0, none, np.where(at == 1, hesitant, plain))


def auroc(score: Array, label: Array) -> float | None:
    """Ties count half; None where one label is missing."""
    from scipy.stats import rankdata

    bad = int(label.sum())
    if not 0 < bad < len(label):
        return None
    return float((rankdata(score)[label == 1].sum() - bad * (bad + 1) / 2) / (bad * (len(label) - bad)))


def population_auroc(preset: str, seed: int = 0) -> dict[str, float]:
    """By modality and of "all" together, nothing missing: what the best possible model would reach, to about .003."""
    draw, visible = numpy_generator(seed, "station", "population"), visibility(preset)
    kind = np.where(np.arange(POPULATION) % 2, draw.integers(0, len(KINDS), POPULATION), -1)
    x = draw_evidence(kind, draw.integers(0, len(GRADES), POPULATION), visible, draw)
    return {name: auroc(ratio, kind >= 0) or 0.5 for name, ratio in log_ratios(x, visible).items()}


def oracle_auroc(label: Array, ratios: Mapping[str, Array], present: Array) -> dict[str, float | None]:
    """What the best possible model reaches on these very records: each modality on those that have it, "all" on every record."""
    have = {name: present[:, at] for at, name in enumerate(MODALITIES)} | {"all": np.ones(len(label), bool)}
    return {name: auroc(ratios[name][have[name]], label[have[name]]) for name in ratios}
