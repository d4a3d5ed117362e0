"""What the report says where records have kinds of fault: the tables over models, what is taken for what, how networks learnt, whether they over-fitted.

Where `assay weld study` has been run, its tables stand there too, as it wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.plots import class_charts
from stages.serving.leaderboard import Row
from stages.serving.record_tables import DEEP, MID, Table, compared, files, read_csv

SHOWN = (DEEP, MID)  # whose learning is drawn, after that of the model in detail
MEASURED = {"loss": ("train_loss", "val_loss"), "accuracy": ("train_accuracy", "val_accuracy")}
RISES = 0.05  # of the lowest validation loss: by so much more at the end, and it has risen
APART = 0.2  # of accuracy: training records told so much better than validation records are known by heart
NO_RISE = "No validation loss rises clearly after the first half of a training, and no network tells training records far better than others."
STUDY = {  # the tables of `assay weld study`, file name -> what they are
    "main": "every model on every fold",
    "ablation": "one thing changed at a time",
    "missing": "what is left when modalities are missing",
}
VERDICT_WORDS = {"accept": "accepted", "review": "for a person to review", "reject": "rejected"}


class Learnt(NamedTuple):
    """One training of the first seed, from learning.csv."""

    model: str
    epoch: list[int]
    figures: dict[str, list[float | None]]  # by column
    best: int  # the place of the state with the least validation loss

    @property
    def overfitted(self) -> str:
        """A sentence where validation got worse from before half of the training on while training got better, or where the state with the least validation
        loss tells training records far better than validation records; else nothing."""
        return self._risen or self._known_by_heart

    @property
    def _known_by_heart(self) -> str:
        train, val = (self.figures[name][self.best] for name in MEASURED["accuracy"])
        if train is None or val is None or train - val < APART:
            return ""
        return f"{self.model} knows its training records by heart: where its validation loss is least it tells {train:.2f} of them and {val:.2f} of the others."

    @property
    def _risen(self) -> str:
        val, train = self.figures["val_loss"], self.figures["train_loss"]
        last = len(self.epoch) - 1
        if self.best >= last / 2 or None in (val[self.best], val[last], train[self.best], train[last]):
            return ""
        if val[last] < val[self.best] * (1 + RISES) or train[last] >= train[self.best]:
            return ""
        return (
            f"{self.model} over-fits: its validation loss is least in epoch {self.epoch[self.best]} of {self.epoch[last]} ({val[self.best]:.3f}) and rises to "
            f"{val[last]:.3f}, while that of training falls from {train[self.best]:.3f} to {train[last]:.3f}."
        )


def class_section(dataset: str, rows: Sequence[Row], best: Row | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """rows: of the leaderboard. best: the recommended one. result: by model, the contents of its metrics JSON.

    "model" is the one shown in detail: the recommended one, or, where that tells no classes, the one with the highest macro F1 that is no control.
    "charts" go with those of the section, "files" are the tables as CSV and Markdown, file name -> text.
    """
    found = compared(rows, result)
    judged = [row for row in rows if row.refused is None]
    telling = [row for row in judged if "classes" in result[row.model]]
    detail = best if best in telling else _best_told(telling)
    learnt = [one for row in telling for one in trainings(row)]
    unseen = sorted({name for row in telling for name in result[row.model].get("classes_only_in_test", ())})
    return {
        "model": detail.model if detail else None,
        "said": found.said,
        "tables": [table._asdict() for table in found.tables.values()],
        "study": [table._asdict() for table in study_tables(Path("metrics", dataset, "study"))],
        "files": files(dataset, found),
        "charts": _charts(telling, detail, learnt),
        "overfitted": [text for one in learnt if (text := one.overfitted)] or [NO_RISE],
        "learnt": len(learnt),
        "unseen": unseen,
        "verdicts": _verdicts(detail) if detail else None,
    }


def _best_told(telling: Sequence[Row]) -> Row | None:
    """Many networks rank alike and tell one class alone; the one that tells most is worth a look."""
    models = [row for row in telling if row.kind != "control"]
    return max(models, key=lambda row: row.metrics.get("macro_f1", {}).get("value") or 0.0, default=None)


def trainings(row: Row) -> list[Learnt]:
    """Those of the first seed that measured a loss on both parts; a model of several networks has one each, named after it."""
    rows = [one for one in read_csv(row.folder / "learning.csv") if one.get("train_loss") is not None and one.get("val_loss") is not None]
    rows = [one for one in rows if one["seed"] == rows[0]["seed"]]
    names = list(dict.fromkeys(one["training"] for one in rows))
    found = []
    for name in names:
        own = [one for one in rows if one["training"] == name]
        figures = {column: [one.get(column) for one in own] for pair in MEASURED.values() for column in pair}
        best = min(range(len(own)), key=lambda place: own[place]["val_loss"])
        model = row.model if len(names) == 1 else f"{row.model}, {name.replace('_', ' ')}"
        found.append(Learnt(model, [int(one["epoch"]) + 1 for one in own], figures, best))
    return found


def _charts(telling: Sequence[Row], detail: Row | None, learnt: Sequence[Learnt]) -> dict[str, Any]:
    drawn = {}
    if detail and (rows := read_csv(detail.folder / "confusion.csv")):
        names = [row["class"] for row in rows]
        drawn["confusion"] = class_charts.confusion(names, [[int(row[name]) for name in names] for row in rows])
    cells = [{"model": row.model, **one} for row in telling for one in read_csv(row.folder / "classes.csv")]
    if cells:
        drawn["by_class"] = class_charts.by_class(cells, [row.model for row in telling])
    wanted = [detail.model if detail else "", *SHOWN]
    first = sorted(learnt, key=lambda one: wanted.index(one.model) if one.model in wanted else len(wanted))[: class_charts.MOST_MODELS]
    for what, (train, val) in MEASURED.items():
        points = [
            {"model": one.model, "epoch": epoch, "train": one.figures[train][place], "val": one.figures[val][place], "kept": place == one.best}
            for one in first
            for place, epoch in enumerate(one.epoch)
        ]
        if any(point["val"] is not None for point in points):
            drawn[f"learning {what}"] = class_charts.learning(points, what)
    return drawn


def _verdicts(row: Row) -> dict[str, Any] | None:
    """What the rule of accept, reject and review makes of the test records, as sentences; None where there is no rule."""
    path = row.folder / "verdicts.json"
    stored = io.read_json(path) if path.is_file() else {"rule": None}
    if stored["rule"] is None:
        return None
    counts = [
        f"{VERDICT_WORDS[word]}: {both['normal']} normal, {both['anomalous']} anomalous" for word, both in stored["test"].items() if sum(both.values())
    ]
    return {"coverage": stored["coverage"], "counts": counts}


def study_tables(folder: Path) -> list[Table]:
    """What a study wrote as Markdown, as tables for the page; none where there was no study."""
    found: list[Table] = []
    for name, title in STUDY.items():
        path = folder / f"{name}.md"
        found += _from_markdown(path.read_text(encoding="utf-8"), title) if path.is_file() else []
    return found


def _from_markdown(text: str, title: str) -> list[Table]:
    """The tables of a text: a line in bold names the next one, other lines are the note of the one before."""
    found, named, open_table = list[Table](), "", False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [one.strip() for one in line.strip("|").split("|")]
            if not open_table:
                found.append(Table(f"{title}: {named}" if named else title, cells, [], "", "", 0))
            elif set(line) <= set("|-: "):
                found[-1] = found[-1]._replace(left=sum(not one.endswith(":") for one in cells))
            else:
                found[-1].rows.append(cells)
        elif line.startswith("**"):
            named = line.strip("*").strip()
        elif line.strip() and found:
            note, own = found[-1].note, line.removeprefix("- ").strip()
            found[-1] = found[-1]._replace(note=own if not note else f"{note} {own}" if note.endswith((":", ".")) else f"{note}; {own}")
        open_table = line.startswith("|")
    return found
