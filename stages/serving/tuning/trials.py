"""One trial: a detector with some options changed, fitted on the training images and measured on the held-out ones.

A trial is ranked by AUROC, averaged over categories. Where the task is solved AUROC cannot tell trials apart; then the margin decides, the
distance between the mean scores of bad and good images in units of their spread, and then the fewer changes. A configuration that cannot be
is a trial with the reason, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import detectors, engine
from stages.datasets.shots import references
from stages.errors import UserError
from stages.metrics.ranking import auroc
from stages.params import Params
from stages.serving.tuning.space import Options
from stages.serving.tuning.task import Task, copies_of


class Trial(NamedTuple):
    """changes: what differs from params.yaml. scores: per category, of the rows of `Task.judged`. Without a result there is a reason."""

    number: int
    changes: Options
    seconds: float
    refused: str | None = None
    auroc: float | None = None
    margin: float | None = None
    scores: dict[str, list[float]] = {}

    @property
    def rank(self) -> tuple[Any, ...]:
        """Smaller is better."""
        return (-self.auroc, -self.margin, len(self.changes), self.number) if self.refused is None else (1.0,)


def best_of(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: trial.rank)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those with a result, best first."""
    return sorted((trial for trial in trials if trial.refused is None), key=lambda trial: trial.rank)


def run_trial(params: Params, task: Task, detector: str, options: Options) -> dict[str, Any]:
    """The result of one configuration: auroc, margin and scores, or refused. One unit per category; all of them where one model serves all."""
    groups = [task.categories] if options.get("multi_class") else [[category] for category in task.categories]
    units = [
        engine.Unit(
            "+".join(categories), {"params": params, "task": task, "detector": detector, "options": options, "categories": categories}
        )
        for categories in groups
    ]
    outcomes = engine.run(
        fit_and_score, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training")
    )
    refused = [f"{outcome.key}: {_reason(outcome)}" for outcome in outcomes if outcome.error or "refused" in outcome.value]
    if refused:
        return {"refused": refused[0]}
    scores = {category: values for outcome in outcomes for category, values in outcome.value["scores"].items()}
    return {**measured(task, scores), "scores": scores}


def fit_and_score(params: Params, task: Task, detector: str, options: Options, categories: list[str]) -> dict[str, Any]:
    """One unit: fitted as `train` fits, with the run's first seed. Returns scores per category, or the reason why there are none."""
    from stages.detectors.scoring import score_split
    from stages.encoders.batches import open_batches
    from stages.encoders.encoder import resolve_device, text_tower
    from stages.training import Run

    run = task.run
    try:
        fresh = detectors.build(detector, options, at=("models", run.model))
        layers = fresh.needs.layers
        seed, shots = params.seeds(run)[0], params.rows(run.model)[run.model].shots
        learnt = references([row for row in task.train if row["category"] in categories], shots, seed)
        held_out = [row for row in task.val if row["category"] in categories]
        train, val = (open_batches(run.dataset, run.encoder, rows, layers, params) for rows in (learnt, held_out))
        aux = _auxiliary(params, fresh.needs.aux, train)
        session = Run(
            seed=seed,
            device=params.compute.device,
            quiet=True,
            aux=aux,
            backbones=params.backbones_folder,
            dataset=run.dataset,
            category=categories[0],  # several are one model's, which no sentence is about
            text=text_tower(train.encoder_identity, params.compute.device, params.compute.threads, params.backbones_folder),
        )
        fitted = fresh.fit(train, None if shots is not None else val, session).to(resolve_device(params.compute.device)).eval()
        scores = {}
        for category in categories:
            own = open_batches(run.dataset, run.encoder, [row for row in task.val if row["category"] == category], layers, params)
            parts = [own, copies_of(params, task, category, layers)]
            found = np.concatenate([score_split(fitted, part, params.protocol.map_size).score for part in parts if part is not None])
            if not np.isfinite(found).all():
                raise ValueError(f"{(~np.isfinite(found)).sum()} of {len(found)} scores of {category} are not finite")
            scores[category] = found.tolist()
    except (UserError, ValueError) as reason:
        return {"refused": str(reason)}
    return {"scores": scores}


def measured(task: Task, scores: dict[str, list[float]]) -> dict[str, float]:
    """AUROC and margin, averaged over categories."""
    pairs = [(np.array(scores[category]), np.array([row["label"] for row in task.judged(category)])) for category in task.categories]
    return {
        "auroc": float(np.mean([auroc(score, label) for score, label in pairs])),
        "margin": float(np.mean([margin(score, label) for score, label in pairs])),
    }


def margin(score: np.ndarray, label: np.ndarray) -> float:
    """(mean of bad - mean of good) / their pooled standard deviation; 0 where nothing varies. score, label: (N,)."""
    bad, good = score[label == 1], score[label == 0]
    spread = np.sqrt((bad.var() + good.var()) / 2)
    return float((bad.mean() - good.mean()) / spread) if spread > 0 else 0.0


def _auxiliary(params: Params, names: Sequence[str], train: Any) -> dict[str, Any]:
    if not names:
        return {}
    from stages.datasets.auxiliary import auxiliary_batches

    pixels = train.take(list(range(train.samples))).features["pixels"]
    return {name: auxiliary_batches(name, getattr(params.auxiliary, name), pixels) for name in names}


def _reason(outcome: engine.Outcome) -> str:
    """One line: what was refused, or how it crashed."""
    text = outcome.value["refused"] if outcome.error is None else outcome.error
    return (text.splitlines() if outcome.error is None or outcome.mendable else [f"crashed, {text.strip().splitlines()[-1]}"])[0]


def code_of(params: Params, task: Task) -> list[Path]:
    """The files that decide a trial's result beside its options: the detector's own and those of its family's maths."""
    places = (Path(task.run.code), Path(task.run.maths))
    return sorted({path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))})
