"""New records in, verdicts out: the raw score, its probability, where it lies among normal records, and what each modality said.

A record is a `.pt` file of tokens, or the raw media of one: `text=note.txt image=part.png`. Media go through the encoders that filled the feature store, as
its records.json describes them, so that a stored record and the same one live are scored alike. Any modality may be missing; the verdict says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import engine, errors, io
from stages.datasets.record_adapters import STORED
from stages.datasets.records import Ragged, Record, Records, packed
from stages.fusion.detector import WrongRecords
from stages.metrics.thresholds import Threshold
from stages.params import Params, ParamsError, nearest
from stages.serving.predict import UNREADABLE
from stages.serving.record_model import RecordModel

if TYPE_CHECKING:
    import numpy as np

    from stages.encoders.media.encoder import TokenEncoder
    from stages.fusion.detector import RecordDetector
    from stages.fusion.occlusion import Span
    from stages.serving.setting_check import Check

SUFFIX = ".pt"


class RecordVerdict(NamedTuple):
    record: str  # the file, or the id of what its media show
    dataset: str
    model: str
    score: float | None  # raw; None where the record cannot be read
    probability: float | None  # of an anomaly; None where the score is no logit
    percentile: float | None  # share of held-out normal records that score no higher, in percent
    normal_records: int  # how many that is of
    threshold: float | None
    verdict: str  # "normal", "anomalous", "unknown" where there is no threshold, "review" where a setting is refused, or UNREADABLE
    margin: float | None  # score - threshold; above 0 is anomalous
    present: list[str]
    missing: list[str]  # modalities that the model knows and the record lacks
    contributions: (
        dict[str, float] | None
    )  # by modality that is present; they sum to the score less that of a record of which nothing is known
    nothing_known: float | None  # that score
    warnings: list[str]
    decision: str | None = None  # "accept", "reject" or "review", of a model that tells kinds of fault where held-out records gave a rule
    told: str | None = None  # "normal" or the kind of fault
    faults: list[tuple[str, float]] | None = None  # the likeliest kinds, with their shares if there is a fault
    suspected: str | None = None  # when and by which modality
    outside: list[dict[str, Any]] | None = None  # settings outside what the model has seen: fact, value, seen; None where no facts are given
    model_id: str | None = None  # its folder in models/
    model_sha256: str | None = None  # of model.safetensors
    data: str | None = None  # fingerprint of the records that it learnt from


def is_record(path: Path) -> bool:
    """Whether an argument of `assay predict` means a record: a `.pt` file, or one medium of a record, as in image=part.png."""
    return path.suffix.lower() == SUFFIX or ("=" in path.as_posix().split("/")[0] and not path.exists())


def given(arguments: Sequence[Path]) -> tuple[list[Path], dict[str, Path]]:
    """The files of tokens, and the media of one more record. Raises UserError for what is neither, or not here."""
    files, media = [], {}
    for path in arguments:
        name, sign, value = path.as_posix().partition("=")
        if sign and not path.is_file():
            if name in media:
                raise errors.UserError(f"{name} is given twice. One call judges the media of one record")
            media[name] = path = Path(value)
        elif path.suffix.lower() == SUFFIX:
            files.append(path)
        else:
            raise errors.UserError(f"{path} is no {SUFFIX} file, and says no modality. Write for instance image={path}")
        if not (path.is_file() or (sign and path.is_dir())):  # a folder: photographs of one thing from several angles
            raise errors.Missing(f"{path} is not here. Name {SUFFIX} files of tokens, or media as in image=part.png text=note.txt")
    return files, media


def predict(
    params: Params, model: RecordModel, files: Sequence[Path], media: Mapping[str, Path], threshold: Threshold, check: Check | None = None
) -> Iterator[RecordVerdict]:
    """A verdict for each file in order, then one for the media. A record that cannot be read, or that the model does not fit, has a verdict of its own.

    check: of the settings; by default those that the files say are held against what the model has seen, and warned of.
    Raises UserError where the model has no encoders for the media as those of training were.
    """
    from stages.datasets.record_errors import RecordError
    from stages.datasets.record_files import read_record
    from stages.fusion.scoring import nothing_known
    from stages.serving.setting_check import check_of, held

    known, traced = check or check_of(model), model.identity()
    with engine.thread_limit(params.compute.threads):
        detector, (normal, every) = model.detector(), model.held_out()
        held_out = normal, nothing_known(detector, every) if len(every) else 0.0
        encoders, as_tokens = _encoders(params, model, media) if media else {}, _as_tokens(model)
        for path in files:
            try:
                read = read_record(path, as_tokens=as_tokens)
                verdict = held(_judged(model, detector, held_out, path.as_posix(), read.record, threshold), known, read.facts)
            except (RecordError, WrongRecords) as error:
                verdict = _unreadable(model, path.as_posix(), error)
            yield verdict._replace(**traced)
        if media:
            shown = " ".join(f"{name}={path}" for name, path in media.items())
            try:
                record = Record("given", {name: encoders[name]([path])[0] for name, path in media.items()})
                verdict = held(_judged(model, detector, held_out, shown, record, threshold), known, {})
            except errors.UserError as error:
                verdict = _unreadable(model, shown, error)
            yield verdict._replace(**traced)


def _as_tokens(model: RecordModel) -> bool:
    """Whether the stored tokens that the model learnt from were read so; of media the question does not arise."""
    about = model.project / "features" / model.dataset / STORED / "records.json"
    return bool(about.is_file() and io.read_json(about).get("entry", {}).get("as_tokens"))


def _encoders(params: Params, model: RecordModel, media: Mapping[str, Path]) -> dict[str, TokenEncoder]:
    """For each medium the one that made the model's features."""
    from stages.encoders.encoder import resolve_device
    from stages.encoders.media import rebuild
    from stages.encoders.media.encoder import Place

    place = Place(resolve_device(params.compute.device), params.compute.threads, model.project / params.backbones_folder)
    known, features, encoders = model.modalities(), model.project / "features" / model.dataset, {}
    for name in media:
        if name not in known:
            raise ParamsError(f"{model.name} knows no modality {name!r}{nearest(name, known)}")
        if not (features / name).is_dir() and (features / STORED).is_dir():
            what = f"{model.name} on {model.dataset} learnt from {SUFFIX} files, and which encoder made their {name} is not known"
            raise ParamsError(f"{what}. Give a {SUFFIX} file that this encoder made, not {name}={media[name]}")
        encoders[name] = rebuild(io.read_json(io.require(features / name / "records.json")), place)
    return encoders


def _judged(
    model: RecordModel, detector: RecordDetector, held_out: tuple[np.ndarray, float], shown: str, record: Record, threshold: Threshold
) -> RecordVerdict:
    """`score > threshold` is anomalous, as everywhere. Raises WrongRecords for a record that the model gives no number."""
    import math

    import numpy as np

    from stages.metrics.calibration import probability

    widths = {name: tokens.values.shape[1] for name, tokens in record.modalities.items()}
    records = packed([record], widths)
    score = float(detector.score(records)[0])
    if math.isnan(score):
        raise WrongRecords(f"{model.name} gives this record the score NaN, which is no verdict. Look at the values of its tokens, and at the model's training")
    (normal, nothing_known), temperature = held_out, model.temperature()
    margin = None if threshold.value is None else score - threshold.value
    present = [name for name in detector.widths if name in record.modalities]
    return RecordVerdict(
        record=shown,
        dataset=model.dataset,
        model=model.name,
        score=score,
        probability=None if temperature is None else float(probability(score, temperature)),
        percentile=100 * float(np.mean(normal <= score)) if len(normal) else None,
        normal_records=len(normal),
        threshold=threshold.value,
        verdict="unknown" if margin is None else "anomalous" if margin > 0 else "normal",
        margin=margin,
        present=present,
        missing=[name for name in detector.widths if name not in record.modalities],
        contributions=_contributions(detector, records, present, nothing_known),
        nothing_known=nothing_known,
        warnings=[],
    )._replace(**_told(model, detector, records, temperature))


def _told(model: RecordModel, detector: RecordDetector, records: Records, temperature: float | None) -> dict[str, Any]:
    """The fields of a verdict that a model has which tells kinds of fault."""
    from stages.fusion.classifying import tells
    from stages.fusion.occlusion import spans
    from stages.metrics.calibration import probability
    from stages.serving.class_verdict import rule_of, verdict

    if not tells(detector):
        return {}
    score = float(detector.score(records)[0])
    chance = None if not detector.supervised else float(probability(score, temperature or 1.0))
    found = verdict(detector.classify(records).logits[0].tolist(), detector.classes, chance, rule_of(model.results)[0])
    span = next(iter(spans(detector, records)), None)
    return {"decision": found.decision, "told": found.told, "faults": found.ranking, "suspected": moment(model, span) if span else None}


def moment(model: RecordModel, span: Span) -> str:
    """When a span is: in seconds from the arc where tokens are on its clock, else as shares of the record."""
    path = model.project / "features" / model.dataset / span.modality / "records.json"
    entry = io.read_json(path).get("entry", {}) if path.is_file() else {}
    if entry.get("kind") == "views":  # the time of a photograph is its angle
        first, last = (round(moment * (entry["views"] - 1)) + 1 for moment in (span.start, span.end))
        return f"photograph {first}{f' to {last}' if last > first else ''} of {entry['views']}, by {span.modality}"
    if entry.get("onset") and entry.get("clock_s"):
        return f"{span.start * entry['clock_s']:.1f} to {span.end * entry['clock_s']:.1f} s from the arc, by {span.modality}"
    return f"{100 * span.start:.0f} to {100 * span.end:.0f} % of the record, by {span.modality}"


def _contributions(detector: RecordDetector, records: Records, present: Sequence[str], nothing_known: float) -> dict[str, float] | None:
    """Shapley values over the modalities that are present; None where there are too many to score every subset of them."""
    from stages.metrics.shapley import MOST_PLAYERS, coalitions, shapley

    if len(present) > MOST_PLAYERS:
        return None
    subsets = [subset for subset in coalitions(present) if subset]
    every = records.take([0] * len(subsets))
    tokens = {}
    for name, ragged in every.tokens.items():
        there = [place for place, subset in enumerate(subsets) if name in subset]
        tokens[name] = _only_at(ragged, there)
    scores = detector.score(every._replace(tokens=tokens)).tolist()
    values = shapley({frozenset(): nothing_known, **dict(zip(subsets, scores, strict=True))}, present)[0]
    return dict(zip(present, values.tolist(), strict=True))


def _only_at(ragged: Ragged, places: Sequence[int]) -> Ragged:
    """The tokens of these records; the others have none."""
    import torch

    kept = torch.zeros(len(ragged.lengths), dtype=torch.bool)
    kept[list(places)] = True
    lengths = ragged.lengths * kept
    rows = torch.repeat_interleave(kept, ragged.lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Ragged(ragged.values[rows], ragged.time[rows], offsets)


def _unreadable(model: RecordModel, shown: str, error: Exception) -> RecordVerdict:
    nothing: dict[str, Any] = dict.fromkeys(RecordVerdict._fields)
    about = {"record": shown, "dataset": model.dataset, "model": model.name, "normal_records": 0, "present": [], "missing": []}
    return RecordVerdict(**nothing | about | {"verdict": UNREADABLE, "warnings": [str(error)]})


def head(model: RecordModel, threshold: Threshold) -> str:
    """Which model speaks, and what its threshold promises."""
    from stages.metrics.thresholds_text import promise_text

    if threshold.value is None:
        return f"{model.name} on {model.dataset}; no threshold: {threshold.reason}"
    promise = f", {promise_text(threshold).replace('good parts', 'normal records')}" if threshold.method == "conformal" else ""
    note = f"\nnote: {threshold.note}" if threshold.note else ""
    return f"{model.name} on {model.dataset}; threshold {threshold.value:.4g} ({threshold.method}){promise}{note}"


def render(verdict: RecordVerdict) -> str:
    """A few lines for a terminal."""
    if verdict.score is None:
        return f"{verdict.record}: {verdict.verdict}. {verdict.warnings[0]}"
    sure = "" if verdict.probability is None else f", probability {verdict.probability:.3f}"
    among = "no held-out normal records to compare with"
    if verdict.percentile is not None:
        among = f"as high as or higher than {verdict.percentile:.0f} % of {verdict.normal_records} held-out normal records"
    lines = [f"{verdict.record}: {verdict.verdict}", f"  score {verdict.score:.4g}{sure}, {among}"]
    if verdict.margin is not None:
        lines.append(f"  threshold {verdict.threshold:.4g}, margin {verdict.margin:+.4g}")
    if verdict.contributions is not None:
        said = ", ".join(f"{name} {value:+.3g}" for name, value in sorted(verdict.contributions.items(), key=lambda one: -abs(one[1])))
        lines.append(f"  {said}: what each added to {verdict.nothing_known:.3g}, the score of a record of which nothing is known")
    if verdict.told is not None:
        faults = ", ".join(f"{name.replace('_', ' ')} {share:.2f}" for name, share in verdict.faults or ())
        rule = f"by a rule of its own beside the threshold: {verdict.decision}" if verdict.decision else "no rule to accept or reject by"
        lines.append(f"  {rule}; told: {verdict.told.replace('_', ' ')}; if faulty: {faults}")
    if verdict.suspected is not None:
        lines.append(f"  what looks anomalous is most of all at {verdict.suspected}")
    lines += [f"  outside what the model has seen: {warning}" if verdict.outside else f"  {warning}" for warning in verdict.warnings]
    return "\n".join([*lines, *([f"  missing: {', '.join(verdict.missing)}"] if verdict.missing else [])])
