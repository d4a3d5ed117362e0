"""Which fitted model of records answers, at which threshold, and what held-out normal records say of a score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import errors, io
from stages.fusion import artefact
from stages.metrics.thresholds import Threshold
from stages.params import Params
from stages.serving.leaderboard import TASKS, results
from stages.serving.record_thresholds import first_threshold, stored
from stages.serving.reference import only
from stages.serving.verdict import VERDICTS

if TYPE_CHECKING:
    import numpy as np

    from stages.fusion.detector import RecordDetector

RANKED_BY = TASKS["records"].ranked_by


class RecordModel(NamedTuple):
    """One fitted model of records and where its results lie; its first seed."""

    project: Path
    dataset: str
    name: str
    place: Path  # models/<dataset>/<model>[/<row>]/seed<k>
    results: Path  # metrics/<dataset>/<model>[/<row>]
    seed: int

    def detector(self) -> RecordDetector:
        return artefact.load(self.place)

    def modalities(self) -> dict[str, int]:
        """Their widths, in the order of training."""
        return io.read_json(io.require(self.place / "config.json"))["modalities"]

    def identity(self) -> dict[str, str]:
        """What a verdict can be traced back by: the model's folder, the hash of its file, the fingerprint of the data that it learnt from."""
        data = io.read_json(io.require(self.place / "config.json"))["data"]
        known = self.place.relative_to(self.project / "models").as_posix()
        return {"model_id": known, "model_sha256": io.file_hash(self.place / "model.safetensors"), "data": data}

    def settings(self) -> dict[str, Any] | None:
        """The range of each setting that it learnt from; None where it was fitted before ranges were kept."""
        return io.read_json(io.require(self.place / "config.json")).get("settings")

    def temperature(self) -> float | None:
        """What the logit is divided by before it becomes a probability; None where the score is no logit, or none could be fitted."""
        return stored(self.results)["temperatures"][0]

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) of the normal validation records, and (m,) of all of them."""
        import numpy as np

        rows = [
            row
            for row in io.read_table(io.require(self.results / "predictions.parquet"))
            if (row["split"], row["seed"]) == ("val", self.seed)
        ]
        scores = np.array([row["score"] for row in rows])
        normal = np.array([row["label"] == 0 for row in rows], dtype=bool)
        return scores[normal], scores


def choose(params: Params, project: Path = Path(), dataset: str | None = None, model: str | None = None) -> RecordModel:
    """The model asked for; by default the one that the report recommends, without a report the one with the highest ROC AUC that is
    no control. Its first seed.

    Raises UserError where it is not clear what is meant, or nothing has been fitted.
    """
    task = params.record_task
    by_dataset: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}
    for folder, result in results(params, project).items():
        if result["dataset"] in task.datasets and "refused" not in result:
            by_dataset.setdefault(result["dataset"], {})[result["model"]] = folder, result
    if not by_dataset:
        raise errors.Missing(f"no results of a model of records in {(project / 'metrics').as_posix()}/ yet. Run `dvc repro`")
    dataset = only("data set", dataset, by_dataset, "--dataset")
    known = by_dataset[dataset]
    model = only("model", model or _recommended(project, dataset, known), known, "--model")
    folder, result = known[model]
    run = next(run for run in task.runs.values() if run.dataset == dataset and model in task.rows(run.model))
    seed = result["seeds"][0]
    return RecordModel(project, dataset, model, project / artefact.folder(dataset, run.model, model, seed), folder, seed)


def threshold_of(model: RecordModel, value: float | None = None, false_alarm_rate: float | None = None) -> Threshold:
    """The one that evaluate fitted; else `value` as it stands, or another promise from the same held-out normal records."""
    from stages.metrics.thresholds import conformal

    if value is not None and false_alarm_rate is not None:
        raise errors.UserError("--threshold and --false-alarm-rate exclude each other. Say one of them")
    if value is not None:
        return Threshold("given", value)
    return first_threshold(model.results) if false_alarm_rate is None else conformal(model.held_out()[0], false_alarm_rate)


def _recommended(project: Path, dataset: str, known: dict[str, tuple[Path, dict[str, Any]]]) -> str:
    verdicts = io.read_json(project / VERDICTS) if (project / VERDICTS).is_file() else {}
    if (name := verdicts.get(dataset)) in known:
        return name
    return max(sorted(known), key=lambda name: ("blind" not in known[name][1], known[name][1]["mean"][RANKED_BY]["value"] or 0.0))
