"""Which fitted model of signals answers, and at which threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import errors, io
from stages.params import Params
from stages.serving.leaderboard import TASKS, results
from stages.serving.reference import only
from stages.serving.verdict import VERDICTS
from stages.timeseries import artefact

if TYPE_CHECKING:
    from stages.timeseries.detector import SeriesDetector

RANKED_BY = TASKS["series"].ranked_by


class SeriesModel(NamedTuple):
    """One fitted model of signals and where its results lie."""

    dataset: str
    category: str
    name: str
    place: Path  # models/<dataset>/<model>/<category>/seed<k>
    threshold: float | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what was learnt."""
        return io.file_hash(io.require(self.place / "model.safetensors"))

    def detector(self) -> SeriesDetector:
        return artefact.load(self.place)

    def variables(self) -> list[str]:
        """Their names in the order of training."""
        return io.read_json(self.place / "config.json")["variables"]


def choose(
    params: Params, project: Path = Path(), dataset: str | None = None, category: str | None = None, model: str | None = None
) -> SeriesModel:
    """The model asked for; by default the one that the report recommends, without a report the one with the highest mean VUS-PR. Its first seed.

    Of data sets and categories the only one. Raises UserError where it is not clear what is meant, or nothing has been fitted.
    """
    by_dataset: dict[str, dict[str, tuple[Path, dict[str, Any]]]] = {}
    for folder, result in results(params, project).items():
        if "regime" in result and "refused" not in result:
            by_dataset.setdefault(result["dataset"], {})[result["model"]] = folder, result
    if not by_dataset:
        raise errors.Missing(f"no results of a model of signals in {(project / 'metrics').as_posix()}/ yet. Run `dvc repro`")
    dataset = only("data set", dataset, by_dataset, "--dataset")
    known = by_dataset[dataset]
    model = only("model", model or _recommended(project, dataset, known), known, "--model")
    folder, result = known[model]
    thresholds = io.read_json(folder / "thresholds.json")
    category = only("category", category, thresholds, "--category")
    run = next(run for run in params.signals.runs.values() if run.dataset == dataset and model in params.signals.rows(run.model))
    place = project / artefact.folder(dataset, run.model, model, category, result["seeds"][0])
    deployable = next(iter(thresholds[category].values()))[0]  # at the first of the rates, of the first seed
    return SeriesModel(dataset, category, model, place, deployable["value"])


def _recommended(project: Path, dataset: str, known: dict[str, tuple[Path, dict[str, Any]]]) -> str:
    def quality(name: str) -> float:
        return known[name][1]["mean"][RANKED_BY]["value"] or 0.0

    verdicts = io.read_json(project / VERDICTS) if (project / VERDICTS).is_file() else {}
    named = [name for table, name in verdicts.items() if table.split(", ")[0] == dataset and name in known]
    return max(named or sorted(known), key=quality)
