"""What the study of a record data set compares: its rows as the tables call them, and what is changed for an ablation.

Rows are entries of params.yaml. An ablation is one of them with some options changed, a modality withheld or its tokens made otherwise, and nothing else; one
whose option nothing here has is left out with that reason. "Good only" rows learn from normal records alone and are judged in columns of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from stages import fusion
from stages.datasets.record_sets import fingerprint, open_stores
from stages.fusion.deep.maths.augment import AUGMENTATIONS
from stages.fusion.one_off import merged
from stages.params import ParamsError, RecordTask, nearest, options
from stages.serving.record_tables import DEEP, LETTERS, MID
from stages.serving.weld_tokens import Tokens, Variation, variation

SINGLES = tuple(name for name, letter in LETTERS.items() if letter == "B")
MISSING = (DEEP, MID, "late-fusion", "gated-fusion", "perceiver-moe")  # rows of the table of missing modalities

HEADLINE, UNSEEN = "P2", "P4"
AS_IT_IS = "as it is: as it is"
PASTE = "fault_paste"
MILD = [name for name in AUGMENTATIONS if name != PASTE]


class StudyRow(NamedTuple):
    """One thing to fit. question, of, against: where it is an ablation, what is asked, of which row, and which row the difference is with."""

    name: str
    detector: str
    options: dict[str, Any]
    shown: tuple[str, ...] | None  # modalities; None is all that is no control
    code: tuple[str, ...]  # files and folders that it is made of
    label: str = ""
    question: str = ""
    of: str = ""
    against: str = ""
    table: str = ""  # "ablation", "tokens" or "ideas"
    protocol: str = ""
    tokens: Variation | None = None  # where they are not those of the data set


class Ablation(NamedTuple):
    """against: the setting of the same question that the difference is with; by default the row DEEP as it is."""

    question: str
    setting: str
    options: dict[str, Any] = {}
    of: str = DEEP
    without: str | None = None  # a modality
    tokens: Tokens | None = None
    against: str | None = None
    table: str = "ablation"
    protocol: str = HEADLINE

    @property
    def name(self) -> str:
        return f"{self.question}: {self.setting}"


def _learning(question: str, settings: dict[str, dict[str, Any]]) -> list[Ablation]:
    return [Ablation(question, setting, {"learning": options}) for setting, options in settings.items()]


def _tokens(question: str, of: str, settings: dict[str, Tokens | None], options: dict[str, dict[str, Any]] | None = None) -> list[Ablation]:
    """The first setting is what the others are compared with. options: by setting, of the row."""
    first = next(iter(settings))
    return [
        Ablation(question, setting, (options or {}).get(setting, {}), of, None, tokens, first, "tokens")
        for setting, tokens in settings.items()
    ]


def _clocks(apart_s: float, **data: Any) -> Tokens:
    """Recordings on clocks of their own, as far apart as that; nothing is cut at the arc."""
    finer = {"audio": {"onset": False, "windows": 64}, "video": {"onset": False, "frames": 32}, "series": {"onset": False}}
    return Tokens({"offset_s": apart_s, **data}, finer)


def _apart(question: str, **data: Any) -> list[Ablation]:
    """What clocks that begin up to 2 s apart cost, and what aligning them gives back."""
    exact, apart = _clocks(0.0, **data), _clocks(2.0, **data)
    settings = {"exact clocks": exact, "apart": apart, "apart, aligned": apart}
    return _tokens(question, DEEP, settings, {"apart, aligned": {"encoding": {"align": True, "clock_s": 11.0}}})


LABEL, CLOCKS, MOMENT = "paper label in the photographs", "clocks 2 s apart", "clocks 2 s apart where the moment tells"
TASK = "reconstruction beside the classes"
UNCUT = Tokens(encoders={"image": {"crop": [0.0, 0.0, 0.0, 0.0]}})
LEVELS = Tokens(encoders={"series": {"relative": False}})
DIVIDED = Tokens(encoders={"series": {"kind": "sensor_residual", "steps": 88, "clock_s": 10.0}})

ABLATIONS = (
    Ablation("as it is", "as it is"),
    *(Ablation("without a modality", f"no {name}", without=name) for name in ("video", "image", "audio", "series")),
    *(Ablation("kind of fusion", name, of=name) for name in ("late-fusion", MID, "gated-fusion", "perceiver-moe")),
    *(Ablation("queries of the fusion", str(count), {"queries": count}) for count in (1, 4, 8)),
    *_learning(
        "loss", {"contrast only": {"alpha": 0.0}, "cross-entropy only": {"contrast": 0.0}, "both": {"contrast": 1.0, "alpha": 1.0}}
    ),
    *_learning("temperature of the contrast", {f"{tau:g}": {"tau": tau} for tau in (0.05, 0.07, 0.1, 0.2)}),
    *(Ablation("learned lag of each modality", word, {"encoding": {"align": value}}) for word, value in (("off", False), ("on", True))),
    *_learning("modality dropout", {f"{chance:g}": {"modality_dropout": chance} for chance in (0.0, 0.3)}),
    *(Ablation("photos of one part", f"at most {count}", {"encoding": {"max_views": count}}) for count in (1, 3)),
    *(Ablation("photos of one part together", word, {"encoding": {"views": word}}) for word in ("each", "mean", "max")),
    *_learning("hard negatives (beta)", {f"{beta:g}": {"hard_negatives": beta} for beta in (0.0, 0.5, 1.0)}),
    *_learning("reconstruction beside the classes", {"off": {"reconstruction": 0.0}, "weight 0.1": {"reconstruction": 0.1}}),
    *_learning("pre-training without labels", {"off": {"pretrain_epochs": 0}, "5 epochs": {"pretrain_epochs": 5}}),
    *(
        ablation
        for words, share in (("a tenth", 0.1), ("a twentieth", 0.05), ("a hundredth", 0.01))
        for ablation in _learning(
            f"{words} of the labels", {"alone": {"labels": share}, "after 5 epochs without": {"labels": share, "pretrain_epochs": 5}}
        )
    ),
    *_learning("augmentation", {"none": {"augment": []}, "no pasted faults": {"augment": MILD}, "all": {"augment": [*MILD, PASTE]}}),
    *(
        Ablation(f"{TASK} (unseen defects)", setting, {"learning": {"reconstruction": weight}}, against="off", table="ideas", protocol=UNSEEN)
        for setting, weight in (("off", 0.0), ("weight 0.1", 0.1))
    ),
    *_tokens(LABEL, DEEP, {"cut off": None, "left in": UNCUT}),
    *_tokens(f"{LABEL} alone", "image-only", {"cut off": None, "left in": UNCUT}),
    *_tokens("sensors less the setting", DEEP, {"own level taken off": None, "left in": LEVELS, "divided by what was set": DIVIDED}),
    *_tokens(
        "sensors less the setting alone",
        "sensor-only",
        {"own level taken off": None, "left in": LEVELS, "divided by what was set": DIVIDED},
    ),
    *_apart(CLOCKS),
    *_apart(MOMENT, visibility="coincidence"),
)
GOOD_ONLY = (DEEP, MID)  # rows that are fitted on normal records alone as well


def study_rows(task: RecordTask, dataset: str, asked: Sequence[str] | None = None) -> list[StudyRow]:
    """The rows of all runs of a data set, or those that are asked for, in the order of the tables. Raises ParamsError."""
    found: dict[str, StudyRow] = {}
    for run in (run for run in task.runs.values() if run.dataset == dataset):
        for name, entry in task.rows(run.model).items():
            shown = tuple(entry.modalities) if entry.modalities else None
            found[name] = StudyRow(name, entry.detector, dict(entry.options), shown, (run.code, run.maths), entry.label)
    if not found:
        raise ParamsError(f"params.yaml: records.runs has no run on {dataset}. Known data sets: {', '.join(task.datasets)}")
    if unknown := [name for name in asked or () if name not in found]:
        raise ParamsError(f"{dataset} has no row {unknown[0]!r}{nearest(unknown[0], list(found))}")
    place = {name: number for number, name in enumerate(LETTERS)}
    return sorted((row for name, row in found.items() if not asked or name in asked), key=lambda row: place.get(row.name, len(place)))


def good_only(rows: Sequence[StudyRow]) -> list[StudyRow]:
    """The rows of GOOD_ONLY that can learn from normal records alone, so told."""
    asked = [_changed(row, {"learning": {"normal_only": True}}, name=f"{row.name} (Good only)") for row in rows if row.name in GOOD_ONLY]
    return [row for row in asked if unavailable(row) is None]


def ablations(rows: Sequence[StudyRow], dataset: str, questions: Sequence[str] = ()) -> tuple[list[StudyRow], dict[str, str]]:
    """What is fitted for the ablation tables, and by name what cannot be and why. questions: all by default, else these and the row as it is.

    Raises ParamsError for a question that nobody asks.
    """
    known = list(dict.fromkeys(one.question for one in ABLATIONS))
    if unknown := [name for name in questions if name not in known]:
        raise ParamsError(f"there is no ablation {unknown[0]!r}{nearest(unknown[0], known)}")
    by_name, found, gone = {row.name: row for row in rows}, list[StudyRow](), dict[str, str]()
    present = tuple(name for store in open_stores(dataset) for name in store.widths)
    data = fingerprint(dataset)
    for one in ABLATIONS:
        name, base = one.name, by_name.get(one.of)
        if questions and one.question not in (*questions, ABLATIONS[0].question):
            continue
        if base is None:
            gone[name] = f"{one.of} is not among the rows"
            continue
        shown = base.shown or present
        if one.without and (one.without not in shown or len(shown) == 1):
            gone[name] = f"{one.of} is not shown {one.without}"
            continue
        kept = tuple(other for other in shown if other != one.without) if one.without else base.shown
        against = f"{one.question}: {one.against}" if one.against else AS_IT_IS
        row = _changed(base, one.options, name)._replace(
            shown=kept, question=one.question, of=one.of, against=against, table=one.table, protocol=one.protocol
        )
        reason, row = _with_tokens(row, one, dataset, data)
        if reason := reason or unavailable(row):
            gone[name] = reason
        else:
            found.append(row)
    return found, gone


def _with_tokens(row: StudyRow, one: Ablation, dataset: str, data: str) -> tuple[str | None, StudyRow]:
    """The row on its tokens, or why they cannot be had."""
    if one.tokens is None:
        return None, row
    try:
        return None, row._replace(tokens=variation(dataset, one.tokens, data))
    except ParamsError as reason:
        return str(reason), row


def unavailable(row: StudyRow) -> str | None:
    """Why a detector cannot be made with these options; None where it can."""
    try:
        fusion.build(row.detector, row.options, at=("records", "models", row.name))
    except ParamsError as reason:
        return str(reason)
    return None


def settled(row: StudyRow) -> dict[str, Any]:
    """All options of a row with the defaults filled in, as plain values: what is said and what is left unsaid are the same model."""
    given = options(fusion.load(row.detector), row.options, ("records", "models", row.name))
    return {name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in given.items()}


def _changed(row: StudyRow, changes: dict[str, Any], name: str) -> StudyRow:
    return row._replace(name=name, options=merged(row.options, changes))
