"""Which fitted model of signals answers, and at which threshold: found in the files of models/ and metrics/ alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import errors, io
from stages.params import ParamsError, nearest
from stages.timeseries import artefact

if TYPE_CHECKING:
    from stages.timeseries.detector import SeriesDetector

DEPLOYABLE = "deployable"  # the threshold from held-out normal steps, in thresholds.json
RANKED_BY = "vus_pr"


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
        config = io.read_json(self.place / "config.json")
        if not config.get("variables"):
            raise errors.UserError(
                f"{self.place / 'config.json'} does not name the variables. Train the model again: `dvc repro train_series`"
            )
        return config["variables"]


def choose(project: Path = Path(), dataset: str | None = None, category: str | None = None, model: str | None = None) -> SeriesModel:
    """The model asked for: of data sets and categories the only one, of models by default the one with the highest mean VUS-PR.

    Its first seed. Raises UserError where it is not clear what is meant, or nothing has been fitted.
    """
    found = [path for path in sorted(project.glob("metrics/*/*/*/thresholds.json")) if DEPLOYABLE in io.read_json(path)]
    places = {tuple(path.relative_to(project / "metrics").parts[:3]): path for path in found}
    if not places:
        raise errors.Missing(f"no results of a model of signals in {(project / 'metrics').as_posix()}/ yet. Run `dvc repro`")
    dataset = _only("data set", dataset, {key[0] for key in places}, "--dataset")
    by_model = {key[1] for key in places if key[0] == dataset}
    model = _only("model", model or _best(project, dataset, by_model), by_model, "--model")
    category = _only("category", category, {key[2] for key in places if key[:2] == (dataset, model)}, "--category")
    seeds = sorted((project / artefact.folder(dataset, model, category, 0)).parent.glob("seed*/config.json"), key=_seed)
    if not seeds:
        raise errors.Missing(
            f"no fitted {model} for {dataset} / {category} in {(project / 'models').as_posix()}/. Run `dvc repro` or `dvc pull`"
        )
    threshold = io.read_json(places[dataset, model, category])[DEPLOYABLE]["value"]
    return SeriesModel(dataset, category, model, seeds[0].parent, threshold)


def _only(what: str, asked: str | None, known: set[str], option: str) -> str:
    if asked is None and len(known) == 1:
        return next(iter(known))
    if asked is None:
        raise ParamsError(f"which {what}? There are {', '.join(sorted(known))}. Say {option} {min(known)}")
    if asked not in known:
        raise ParamsError(f"no {what} {asked!r} with results here{nearest(asked, known)}")
    return asked


def _best(project: Path, dataset: str, names: set[str]) -> str | None:
    """The name with the highest mean VUS-PR; None where no result has one."""

    def mean(name: str) -> float:
        path = project / "metrics" / dataset / f"{name}.json"
        result: dict[str, Any] = io.read_json(path) if path.is_file() else {}
        return result.get("mean", {}).get(RANKED_BY, {}).get("value") or -1.0

    ranked = {name: mean(name) for name in sorted(names)}
    best = max(ranked, key=ranked.get)
    return best if ranked[best] >= 0 else None


def _seed(config: Path) -> int:
    number = config.parent.name.removeprefix("seed")
    return int(number) if number.isdecimal() else 0
