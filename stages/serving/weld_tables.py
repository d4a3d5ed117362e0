"""The tables of a study as CSV and Markdown: main, ablations, missing modalities, other tokens, ideas; paired differences and folds as JSON.

What learns from labels (S; where the tested kind of fault was left out of them, O) and what learns from normal records alone (U) never stand in one column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.errors import Missing, UserError
from stages.metrics.bootstrap import Interval
from stages.metrics.tables import rows_csv
from stages.params import nearest
from stages.serving import weld_ideas, weld_oracle
from stages.serving.record_tables import DEEP, LETTERS, MID, SETPOINT
from stages.serving.weld_figures import (
    Results,
    best_single,
    difference,
    gathered,
    milliseconds,
    over_folds,
    ranked,
    subset_auroc,
    told_apart,
)
from stages.serving.weld_rows import ABLATIONS, HEADLINE, MISSING, SINGLES, StudyRow
from stages.serving.weld_study import Plan, folds_told

KINDS = {"S": "supervised", "U": "from normal records alone"}
FILES = ("main", "ablation", "missing", "tokens", "ideas")
OF_RESULTS = FILES[:4]  # the places of a document, unless others are asked for
OVER = ("pooled_auroc", "accuracy", "macro_f1", "knn_accuracy", "knn_macro_f1", "ece")
LEFT = ("", "row", "question", "setting", "what is left", "idea", "measure", "compared")  # columns of words
Line = dict[str, Any]


def write(planned: Plan, out: Path) -> None:
    results = gathered(planned, out)
    main, missing, ideas = main_lines(planned, results), missing_lines(planned, results), weld_ideas.lines(results)
    ablation, tokens = (ablation_lines(planned, results, table) for table in ("ablation", "tokens"))
    for name, lines in zip(FILES, (main, ablation, missing, tokens, ideas), strict=True):
        columns = list(dict.fromkeys(key for line in lines for key in line))
        io.write_text(out / f"{name}.csv", rows_csv([dict.fromkeys(columns) | line for line in lines], columns))
    io.write_text(out / "main.md", main_text(planned, main))
    io.write_text(out / "ablation.md", ablation_text(ablation))
    io.write_text(out / "missing.md", missing_text(missing))
    io.write_text(out / "tokens.md", ablation_text(tokens))
    io.write_text(out / "ideas.md", ideas_text(ideas))
    io.write_json(out / "paired.json", paired(planned, results))
    io.write_json(out / "folds.json", folds_told(planned))


def learns(results: Results, row: StudyRow) -> str:
    """S or U; of a row that was refused everywhere S."""
    return next(("S" if one.supervised else "U" for (name, _), one in results.scored.items() if name == row.name), "S")


def main_lines(planned: Plan, results: Results) -> list[Line]:
    lines = [_main_line(planned, results, row) for row in planned.main]
    oracle = weld_oracle.auroc_by_protocol(planned)
    return lines + ([{"row": "oracle", "letter": "bound", "learns": "S"} | oracle] if oracle else [])


def _main_line(planned: Plan, results: Results, row: StudyRow) -> Line:
    kind = learns(results, row)
    line: Line = {"row": row.name, "letter": LETTERS.get(row.name.split(" (")[0], ""), "label": row.label, "learns": kind}
    for protocol in planned.folds:
        if scored := results.scored.get((row.name, protocol)):
            line |= _spread(f"{protocol}_auroc_{column_kind(protocol, kind)}", ranked(scored, "auroc"))
    if scored := results.scored.get((row.name, HEADLINE)):
        line |= _spread(f"{HEADLINE}_fnr_at_fpr_05_{kind}", ranked(scored, "fnr_at_fpr_05"))
        over = over_folds(results, row)
        line |= {f"{HEADLINE}_{name}_{kind}" if name == "pooled_auroc" else f"{HEADLINE}_{name}": over[name] for name in OVER}
        if (control := results.scored.get((SETPOINT, HEADLINE))) and row.name != SETPOINT:
            line |= _spread(f"{HEADLINE}_over_setpoint_{kind}", difference(scored, control))
        line |= {"ms": milliseconds(scored), "parameters": scored.first["parameters"], "seeds": len(scored.tested[0].score)}
    refused = {protocol: reason for (name, protocol), reason in results.refused.items() if name == row.name}
    return line | ({"refused": "; ".join(f"{protocol}: {reason}" for protocol, reason in refused.items())} if refused else {})


def column_kind(protocol: str, kind: str) -> str:
    return "O" if protocol == "P4" and kind == "S" else kind


def ablation_lines(planned: Plan, results: Results, table: str) -> list[Line]:
    """table: "ablation", where all are compared with one row as it is, or "tokens", where each question has a row of its own for that."""
    lines: list[Line] = []
    for row in (row for row in planned.ablations if row.table == table):
        scored, base = (results.scored.get((name, HEADLINE)) for name in (row.name, row.against))
        line: Line = {"question": row.question, "setting": row.name.removeprefix(f"{row.question}: ")}
        line |= {"row": row.of} if table == "tokens" else {}
        if scored is None:
            lines.append(line | {"left_out": results.refused.get((row.name, HEADLINE), "")})
            continue
        line |= _spread("auroc", ranked(scored, "auroc"))
        if base and base is not scored and scored.supervised == base.supervised:
            line |= _spread("difference", difference(scored, base))
        line |= {name: over_folds(results, row)[name] for name in ("macro_f1", "knn_macro_f1", "ece")}
        lines.append(line | {"seeds": len(scored.tested[0].score)})
    gone = [one for one in ABLATIONS if one.table == table and one.name in planned.unavailable]
    return lines + [{"question": one.question, "setting": one.setting, "left_out": planned.unavailable[one.name]} for one in gone]


def missing_lines(planned: Plan, results: Results) -> list[Line]:
    rows = {row.name: results.scored[row.name, HEADLINE] for row in planned.main if row.name in MISSING and (row.name, HEADLINE) in results.scored}
    if not rows:
        rows = {name: one for (name, protocol), one in results.scored.items() if protocol == HEADLINE and one.first["subsets"] and ": " not in name}
    oracle = weld_oracle.auroc_by_subset(planned)
    subsets = dict.fromkeys(subset for scored in rows.values() for subset in scored.first["subsets"])
    lines = []
    for subset in sorted(subsets, key=lambda name: (name.count("+"), list(subsets).index(name))):
        line: Line = {"modalities": subset, "count": subset.count("+") + 1}
        line |= {"oracle": oracle.get(frozenset(subset.split("+")))} if oracle else {}
        for name, scored in rows.items():
            if subset in scored.first["subsets"]:
                line |= _spread(name, subset_auroc(scored, subset))
        lines.append(line)
    return lines


def paired(planned: Plan, results: Results) -> dict[str, Any]:
    """By protocol: what is compared, the difference in AUROC (under P2 that of D in macro F1 too), and whether the interval holds zero."""
    told: dict[str, Any] = {
        "draws": "2,000 of sessions, then of seeds", "best_single": "chosen on the same test records, which favours it", "differences": []
    }  # fmt: skip
    for protocol in planned.folds:
        single = best_single(results, SINGLES, protocol)
        pairs = [("D - C2", DEEP, MID), ("D - best single", DEEP, single)]
        pairs += [(f"{row.name} - setpoint-only", row.name, SETPOINT) for row in planned.main if row.name != SETPOINT]
        for name, first, second in pairs:
            one, other = (results.scored.get((row, protocol)) for row in (first, second))
            if one and other:
                found = difference(one, other)
                about = {"protocol": protocol, "difference": name, "first": first, "second": second}
                if protocol == HEADLINE and first == DEEP and (apart := told_apart(results, one, other)):
                    about |= {"macro_f1": apart._asdict() | {"holds_zero": apart.holds_zero}}
                kinds = {"learns": ["S" if each.supervised else "U" for each in (one, other)]}
                told["differences"].append(about | kinds | found._asdict() | {"holds_zero": found.holds_zero})
    return told


def main_text(planned: Plan, lines: Sequence[Line]) -> str:
    """A table for each way to learn; columns that have nothing are left out."""
    parts = []
    for kind, words in KINDS.items():
        own = [line for line in lines if line["learns"] == kind]
        columns = {f"{protocol} AUROC": f"{protocol}_auroc_{column_kind(protocol, kind)}" for protocol in planned.folds}
        columns |= {"over setpoint-only": f"{HEADLINE}_over_setpoint_{kind}", "macro-F1": f"{HEADLINE}_macro_f1", "kNN macro-F1": f"{HEADLINE}_knn_macro_f1"}
        columns |= {"FNR at 5 % FPR": f"{HEADLINE}_fnr_at_fpr_05_{kind}", "ECE": f"{HEADLINE}_ece", "ms": "ms"}
        columns = {head: key for head, key in columns.items() if any(line.get(key) is not None for line in own)}
        if own:
            body = [[line["letter"], _named(line), *(_cell(line, key) for key in columns.values())] for line in own]
            parts.append(f"**{words[0].upper()}{words[1:]} ({kind})**\n\n{_markdown(['', 'row', *columns], body)}")
    refused = [f"- {line['row']}: {line['refused']}" for line in lines if line.get("refused")]
    return "\n".join([*parts, *(["Not to be had:", "", *refused, ""] if refused else [])])


def _named(line: Line) -> str:
    return f"{line['row']} ({line['label']})" if line.get("label") else line["row"]


def ablation_text(lines: Sequence[Line]) -> str:
    fitted = [line for line in lines if "left_out" not in line]
    named = ["question", "setting", *(["row"] if any("row" in line for line in fitted) else [])]
    body = [
        [*(line[name] for name in named), *(_cell(line, key) for key in ("auroc", "difference", "macro_f1", "knn_macro_f1", "ece"))]
        for line in fitted
    ]
    text = _markdown([*named, "P2 AUROC", "difference", "macro-F1", "kNN macro-F1", "ECE"], body) if body else ""
    left = [f"- {line['question']}, {line['setting']}: {line['left_out']}" for line in lines if "left_out" in line]
    return "\n".join([text, *(["Not tried here:", "", *left, ""] if left else [])])


def missing_text(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    names = [key for key in lines[-1] if key not in ("modalities", "count") and not key.endswith(("_low", "_high"))]
    return _markdown(["what is left", *names], [[line["modalities"].replace("+", ", "), *(_cell(line, name) for name in names)] for line in lines])


def ideas_text(lines: Sequence[Line]) -> str:
    names = ("idea", "measure", "compared", "without", "with", "difference")
    body = [[line["idea"], line["measure"], line["compared"], *(_cell(line, name) for name in names[3:])] for line in lines]
    return _markdown([*names[:5], "difference [interval]"], body) if body else ""


def check_document(path: Path, tables: Sequence[str] = OF_RESULTS) -> str:
    """The text of a document that has a place for each table. Raises Missing where it is not here, UserError where it has no such place."""
    if unknown := [name for name in tables if name not in FILES]:
        raise UserError(f"there is no table {unknown[0]!r}{nearest(unknown[0], FILES)}. Known: {', '.join(FILES)}")
    if not path.is_file():
        places = f", and so for {', '.join(tables[1:])}" if tables[1:] else ""
        raise Missing(f"{path} is not here. Give a document that has <!-- weld-{tables[0]} --> and <!-- /weld-{tables[0]} --> in it{places}")
    text = path.read_text(encoding="utf-8")
    for name in tables:
        if not _between(name).search(text):
            raise UserError(f"{path} has no place for the table: it needs <!-- weld-{name} --> and <!-- /weld-{name} -->, each on a line of its own")
    return text


def into_document(path: Path, out: Path, tables: Sequence[str] = OF_RESULTS) -> None:
    """Put the tables between the markers `<!-- weld-main -->` and `<!-- /weld-main -->` of a document, and so on. Raises as `check_document` does."""
    text = check_document(path, tables)
    for name in tables:
        table = (out / f"{name}.md").read_text(encoding="utf-8").rstrip("\n")
        text = _between(name).sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    io.write_text(path, text)


def _between(name: str) -> re.Pattern[str]:
    return re.compile(f"(<!-- weld-{name} -->\n).*?(<!-- /weld-{name} -->)", re.DOTALL)


def _spread(name: str, found: Interval) -> Line:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _cell(line: Line, key: str) -> str:
    value = line.get(key)
    if value is None:
        return ""
    if key == "ms":
        return f"{value:.2f}"
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    signed = "difference" in key or "over_setpoint" in key or line.get("measure") == weld_ideas.LOST
    return _short(value, signed) + (f" [{_short(low, signed)}, {_short(high, signed)}]" if low is not None and high is not None else "")


def _short(value: float, signed: bool = False) -> str:
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and "0." in text else text[:4] if not signed else text


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---" if name in LEFT else "---:" for name in head]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body]) + "\n"
