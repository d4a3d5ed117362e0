"""What each medium can know of a defect: numbers that are drawn before anything is rendered, and whose likelihoods are exact.

A weld is cut into SLOTS of its time. For each medium, slot and kind of trace there is one number x, standard normal where nothing happens. A
defect happens in one slot, the same for all media that show it: it adds GRADES[g] * share to the x of its trace there. Two things make the
slot matter. A medium may show a decoy, one trace in one slot of its own that belongs to no defect; so what a single medium shows is worth little until
another one shows its counterpart. And `lack_of_fusion` and `warping` have the same traces, which coincide in the one and lie apart in the other. In the
preset `coincidence` a good weld may be an echo of a defect besides: all the traces that the defect leaves, each in a slot of its own.

Renderers see x and what has nothing to do with the class, never the class itself; so by the data-processing inequality no model of a subset of
media can beat the likelihood ratio of its numbers, which sums over everything that is not known: class, grade, slots, decoys and echoes.

n welds, C defects, M media, J slots, K traces of a medium, G grades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from stages.datasets.samples import DataError
from stages.params import nearest
from stages.seed import numpy_generator

Array = np.ndarray[Any, np.dtype[Any]]
Ratios = dict[tuple[str, ...], Array]  # subset of media, in the order of MEDIA -> (n, C)

MEDIA = ("video", "image", "audio", "series")
TRACES: dict[str, tuple[str, ...]] = {
    "video": ("sparks", "flare", "wander", "sag"),
    "image": ("pores", "balls", "bulge", "groove", "hole", "crack"),
    "audio": ("crackle", "hiss", "flutter", "hum"),
    "series": ("gas", "current", "voltage", "feed"),
}
DEFECTS = ("excessive_convexity", "undercut", "lack_of_fusion", "porosity", "spatter", "burnthrough", "porosity_w_excessive_penetration",
           "excessive_penetration", "crater_cracks", "warping", "overlap")  # fmt: skip
GOOD = -1  # the index of a weld that has none of them
SLOTS = 8
GRADES = (3.8, 5.2, 6.6)  # in deviations of a quiet slot, for a share of 1
PLAIN = (4.6, 5.6, 6.6)  # where the moments are what is to be learnt, and not the traces
DECOY = 0.8  # the share of a decoy
LAST = ("crater_cracks",)  # happen where the arc goes out
ECHOED = tuple(name for name in DEFECTS if name not in ("lack_of_fusion", "warping"))  # whose traces, apart, are no defect
APART = {"warping": ("audio",)}  # of these, what the named media show happens in another slot than what the others show
POPULATION = 12_000  # welds that numbers alone are drawn for, to know an AUROC of the population

Signs = Mapping[str, Mapping[str, tuple[str, float]]]  # defect -> medium -> trace and share


class Preset(NamedTuple):
    signs: Signs
    decoys: Mapping[str, float]  # chance of a decoy in each medium
    echoes: float = 0.0  # chance of a good weld to be an echo, which has no decoys
    grades: tuple[float, ...] = GRADES  # as many as GRADES


COMPLEMENTARY: Signs = {  # what is not named is not to be seen
    "excessive_convexity": {"image": ("bulge", 0.8), "series": ("feed", 0.9)},
    "undercut": {"video": ("flare", 0.7), "image": ("groove", 1.0), "series": ("voltage", 0.7)},
    "lack_of_fusion": {"video": ("wander", 1.0), "audio": ("flutter", 1.0)},
    "porosity": {"image": ("pores", 0.7), "audio": ("hiss", 0.8), "series": ("gas", 0.9)},
    "spatter": {"video": ("sparks", 0.8), "image": ("balls", 0.7), "audio": ("crackle", 0.9)},
    "burnthrough": {"video": ("sag", 0.9), "image": ("hole", 0.9), "audio": ("crackle", 0.6)},
    "porosity_w_excessive_penetration": {"image": ("pores", 0.8), "audio": ("hum", 0.6), "series": ("current", 0.8)},
    "excessive_penetration": {"video": ("sag", 0.8), "audio": ("hum", 0.7), "series": ("current", 0.9)},
    "crater_cracks": {"image": ("crack", 0.9), "audio": ("crackle", 0.7)},
    "warping": {"video": ("wander", 1.0), "audio": ("flutter", 1.0)},
    "overlap": {"video": ("wander", 0.7), "image": ("bulge", 1.0)},
}
REDUNDANT: Signs = {  # every medium shows every defect
    "excessive_convexity": {"video": ("sag", 1.0), "image": ("bulge", 1.0), "audio": ("hum", 1.0), "series": ("feed", 1.0)},
    "undercut": {"video": ("flare", 1.0), "image": ("groove", 1.0), "audio": ("hiss", 1.0), "series": ("voltage", 1.0)},
    "lack_of_fusion": {"video": ("wander", 1.0), "image": ("groove", 1.0), "audio": ("flutter", 1.0), "series": ("feed", 1.0)},
    "porosity": {"video": ("flare", 1.0), "image": ("pores", 1.0), "audio": ("hiss", 1.0), "series": ("gas", 1.0)},
    "spatter": {"video": ("sparks", 1.0), "image": ("balls", 1.0), "audio": ("crackle", 1.0), "series": ("voltage", 1.0)},
    "burnthrough": {"video": ("sag", 1.0), "image": ("hole", 1.0), "audio": ("crackle", 1.0), "series": ("current", 1.0)},
    "porosity_w_excessive_penetration": {"video": ("sag", 1.0), "image": ("pores", 1.0), "audio": ("hum", 1.0), "series": ("current", 1.0)},
    "excessive_penetration": {"video": ("sag", 1.0), "image": ("hole", 1.0), "audio": ("hum", 1.0), "series": ("current", 1.0)},
    "crater_cracks": {"video": ("flare", 1.0), "image": ("crack", 1.0), "audio": ("crackle", 1.0), "series": ("voltage", 1.0)},
    "warping": {"video": ("wander", 1.0), "image": ("bulge", 1.0), "audio": ("flutter", 1.0), "series": ("gas", 1.0)},
    "overlap": {"video": ("wander", 1.0), "image": ("bulge", 1.0), "audio": ("flutter", 1.0), "series": ("feed", 1.0)},
}
DECOYS = {"video": 0.25, "image": 0.12, "audio": 0.25, "series": 0.25}
ECHOES = 0.3
PRESETS = {
    "complementary": Preset(COMPLEMENTARY, DECOYS),
    "coincidence": Preset(COMPLEMENTARY, {"video": 0.2, "image": 0.1, "audio": 0.2, "series": 0.2}, ECHOES, PLAIN),
    "redundant": Preset(REDUNDANT, DECOYS),
    "photos": Preset({name: {"image": row["image"]} for name, row in REDUNDANT.items()}, DECOYS | {"image": 0.0}),
}


def preset(name: str) -> Preset:
    """Raises DataError for an unknown one."""
    if name not in PRESETS:
        raise DataError(f"weld: no visibility {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]


class Evidence(NamedTuple):
    x: dict[str, Array]  # medium -> (n, J, K)
    grade: Array  # (n,) index, drawn for good welds too
    slot: Array  # (n,) where the defect happens, or would
    other: Array  # (n,) where that part of it happens which lies apart
    echo: Array  # (n,) index of the defect that a good weld is an echo of, GOOD for none


def draw_evidence(defect: Array, chosen: Preset, draw: np.random.Generator) -> Evidence:
    """defect: (n,) index into DEFECTS, or GOOD."""
    count = len(defect)
    x = {name: draw.standard_normal((count, SLOTS, len(TRACES[name]))) for name in MEDIA}
    grade, slot = draw.integers(0, len(GRADES), count), draw.integers(0, SLOTS, count)
    other = (slot + draw.integers(1, SLOTS, count)) % SLOTS
    slot[np.isin(defect, [DEFECTS.index(name) for name in LAST])] = SLOTS - 1
    echoed = np.array([DEFECTS.index(name) for name in ECHOED])[draw.integers(0, len(ECHOED), count)]
    echo = np.where((defect == GOOD) & (draw.random(count) < chosen.echoes), echoed, GOOD)
    apart = draw.integers(0, SLOTS, (count, len(MEDIA)))
    for name in MEDIA:
        chance, where, what = draw.random(count), draw.integers(0, SLOTS, count), draw.integers(0, len(TRACES[name]), count)
        strength = np.array(chosen.grades)[draw.integers(0, len(GRADES), count)] * DECOY
        decoy = np.flatnonzero((chance < chosen.decoys[name]) & (echo == GOOD))
        x[name][decoy, where[decoy], what[decoy]] += strength[decoy]
    for at in np.flatnonzero((defect != GOOD) | (echo != GOOD)):
        kind = DEFECTS[max(defect[at], echo[at])]
        for name, (trace, share) in chosen.signs[kind].items():
            place = other[at] if name in APART.get(kind, ()) else slot[at]
            place = place if echo[at] == GOOD else apart[at, MEDIA.index(name)]
            x[name][at, place, TRACES[name].index(trace)] += chosen.grades[grade[at]] * share
    return Evidence(x, grade, slot, other, echo)


def log_ratios(x: Mapping[str, Array], chosen: Preset, present: Array | None = None) -> Ratios:
    """For each of the 15 subsets of media, log p(x | defect c) - log p(x | good): (n, C), 0 for a weld that has none of the subset.

    Grades and slots are equally likely. present: (n, M) bool; all by default.
    """
    term, found, count = _terms(x, chosen, present), {}, len(x[MEDIA[0]])
    echo = _echoes(x, chosen, present) if chosen.echoes else {}
    for subset in subsets():
        columns = [_over_slots(kind, {name: term[kind][name] for name in subset if name in term[kind]}) for kind in DEFECTS]
        found[subset] = np.stack([np.zeros(count) if column is None else column for column in columns], 1)
        if echo:
            like = logsumexp([sum(echo[kind][name] for name in subset) for kind in ECHOED], axis=(0, 2)) - np.log(len(ECHOED) * len(GRADES))
            found[subset] -= np.logaddexp(np.log(1 - chosen.echoes), np.log(chosen.echoes) + like)[:, None]
    return found


def _echoes(x: Mapping[str, Array], chosen: Preset, present: Array | None) -> dict[str, dict[str, Array]]:
    """defect -> medium -> (n, G): log p(x of the medium | echo of grade g) - log p(x of the medium | good and no echo)."""
    found: dict[str, dict[str, Array]] = {}
    for kind in ECHOED:
        found[kind] = {}
        for name in MEDIA:
            trace, share = chosen.signs[kind].get(name, (TRACES[name][0], 0.0))  # a share of 0 shifts nothing
            mean = np.array(chosen.grades) * share
            shifted = logsumexp(mean * x[name][:, :, TRACES[name].index(trace), None] - mean**2 / 2, axis=1) - np.log(SLOTS)
            term = shifted - np.log(_decoyed(x[name], name, chosen))[:, None]
            found[kind][name] = term if present is None else np.where(present[:, MEDIA.index(name), None], term, 0.0)
    return found


def subsets() -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(MEDIA) + 1) for subset in combinations(MEDIA, size)]


def _terms(x: Mapping[str, Array], chosen: Preset, present: Array | None) -> dict[str, dict[str, Array]]:
    """defect -> medium that shows it -> (n, J, G): the log-likelihood ratio, did it happen in slot j with grade g, against a weld that is no echo."""
    quiet = {name: _decoyed(x[name], name, chosen) for name in MEDIA}
    found: dict[str, dict[str, Array]] = {}
    for kind in DEFECTS:
        found[kind] = {}
        for name, (trace, share) in chosen.signs[kind].items():
            seen, mean = x[name][:, :, TRACES[name].index(trace), None], np.array(chosen.grades) * share
            gain = chosen.decoys[name] * (_decoy_ratio(seen - mean, chosen) - _decoy_ratio(seen, chosen)) / (SLOTS * len(TRACES[name]))
            without = quiet[name][:, None, None]
            term = mean * seen - mean**2 / 2 + np.log(np.maximum(without + gain, 1 - chosen.decoys[name] + 1e-300)) - np.log(without)
            found[kind][name] = term if present is None else np.where(present[:, MEDIA.index(name), None, None], term, 0.0)
    return found


def _decoyed(x: Array, medium: str, chosen: Preset) -> Array:
    """(n,): density of x (n, J, K) with a decoy that may be there, relative to that without."""
    chance = chosen.decoys[medium]
    return 1 - chance + chance * _decoy_ratio(x, chosen).mean((1, 2))


def _decoy_ratio(x: Array, chosen: Preset) -> Array:
    """Of one number, of any shape: its density with a decoy on it relative to that without, grades equally likely."""
    mean = np.array(chosen.grades) * DECOY
    return np.exp(mean * x[..., None] - mean**2 / 2).mean(-1)


def _over_slots(kind: str, term: Mapping[str, Array]) -> Array | None:
    """Sum of the media's terms (n, J, G), averaged as a likelihood over what is not known: (n,). None where no medium shows the defect."""
    if not term:
        return None
    late = [term[name] for name in term if name in APART.get(kind, ())]
    main = sum((term[name] for name in term if name not in APART.get(kind, ())), np.zeros_like(next(iter(term.values()))))
    if kind in LAST:
        return logsumexp(main[:, -1], axis=1) - np.log(len(GRADES))
    if not late:
        return logsumexp(main, axis=(1, 2)) - np.log(SLOTS * len(GRADES))
    both = main[:, :, None] + sum(late)[:, None]  # (n, J, J, G)
    both[:, np.arange(SLOTS), np.arange(SLOTS)] = -np.inf
    return logsumexp(both, axis=(1, 2, 3)) - np.log(SLOTS * (SLOTS - 1) * len(GRADES))


def anomaly(ratio: Array) -> Array:
    """(n, C) to (n,): log p(x | some defect) - log p(x | good), defects equally likely."""
    return logsumexp(ratio, axis=1) - np.log(ratio.shape[1])


def most_likely(ratio: Array, good: float) -> Array:
    """(n,) index of the class that the best possible model names, where the share `good` of welds has no defect."""
    prior = np.log([good, *[(1 - good) / len(DEFECTS)] * len(DEFECTS)])
    return (np.concatenate([np.zeros((len(ratio), 1)), ratio], 1) + prior).argmax(1) - 1


def auroc(score: Array, label: Array) -> float | None:
    """Ties count half; None where one label is missing."""
    from scipy.stats import rankdata

    bad = int(label.sum())
    if not 0 < bad < len(label):
        return None
    return float((rankdata(score)[label == 1].sum() - bad * (bad + 1) / 2) / (bad * (len(label) - bad)))


def population(name: str, seed: int = 0) -> dict[str, Any]:
    """`auroc` by subset and `accuracy` of the 12 classes, nothing missing, half of the welds good: to about .005."""
    draw, chosen = numpy_generator(seed, "weld", "population"), preset(name)
    defect = np.where(np.arange(POPULATION) % 2, draw.integers(0, len(DEFECTS), POPULATION), GOOD)
    ratios = log_ratios(draw_evidence(defect, chosen, draw).x, chosen)
    return judged(ratios, defect, 0.5, np.ones((POPULATION, len(MEDIA)), bool))


def judged(ratios: Ratios, defect: Array, good: float, present: Array) -> dict[str, Any]:
    """What the best possible model reaches on these very welds: each subset on those that have some of it. good: the share it expects."""
    scores: dict[str, float | None] = {}
    for subset, ratio in ratios.items():
        have = present[:, [MEDIA.index(name) for name in subset]].any(1)
        scores[subset_name(subset)] = auroc(anomaly(ratio[have]), (defect[have] != GOOD).astype(np.int8))
    named = most_likely(ratios[MEDIA], good)
    return {"auroc": scores, "accuracy": float((named == defect).mean())}


def subset_name(subset: Sequence[str]) -> str:
    return "all" if len(subset) == len(MEDIA) else "+".join(subset)
