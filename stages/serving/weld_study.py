"""`assay weld study`: every row on every fold and seed, then the main table, the ablations, the table of missing modalities and paired differences.

Work is parted into cells (see `weld_cell`), which run in as many processes as params.yaml says. A finished cell is a file: killed at any time, the same
command goes on with the cells that are not there. Tables are made from the files alone, so that the same cells give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import engine, errors, io
from stages.datasets.record_sets import fingerprint
from stages.datasets.weld_protocols import PROTOCOLS, Folds, described, folds
from stages.errors import UserError
from stages.fusion import artefact
from stages.params import Params
from stages.progress import progress
from stages.serving.weld_cell import Cell, code_hash, compute, file_of, key_of
from stages.serving.weld_rows import HEADLINE, StudyRow, ablations, good_only, settled, study_rows
from stages.serving.weld_tokens import Variation, make, other_records

OUT = Path("metrics/weld/study")
CELLS = "cells"
EVERY_SEED = ("P1", HEADLINE)  # the protocols of many folds are run with the first seed alone
COLUMNS = ("record_id", "label", "group", "fault")


class Asked(NamedTuple):
    """rows, questions: names of rows and of ablations; all by default. every_seed: of all protocols and of the ablations, not of EVERY_SEED alone."""

    dataset: str = "weld"
    protocols: tuple[str, ...] = ("P1", "P2", "P4")
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: tuple[str, ...] = ()
    ablate: bool = True
    every_seed: bool = False
    split_seed: int = 0
    questions: tuple[str, ...] = ()


class Plan(NamedTuple):
    asked: Asked
    table: list[dict[str, Any]]  # the sample table
    folds: dict[str, Folds]  # by protocol
    main: list[StudyRow]
    ablations: list[StudyRow]
    unavailable: dict[str, str]  # ablations that cannot be fitted, and why
    cells: list[tuple[str, Cell]]  # protocol and cell; two of them may have one key

    @property
    def variations(self) -> list[Variation]:
        """Each once."""
        return list({row.tokens.project: row.tokens for row in self.ablations if row.tokens}.values())

    def of(self, row: str, protocol: str) -> list[Cell]:
        return [cell for under, cell in self.cells if under == protocol and cell.row.name == row]


def plan(params: Params, asked: Asked) -> Plan:
    """All that would be computed; nothing is. Raises ParamsError, DataError, Missing."""
    if not asked.protocols:
        raise UserError(f"no protocol is asked for; known: {', '.join(PROTOCOLS)}")
    if unknown := [name for name in asked.protocols if name not in PROTOCOLS]:
        raise UserError(f"there is no protocol {unknown[0]!r}; known: {', '.join(f'{name} ({what})' for name, what in PROTOCOLS.items())}")
    table = io.read_table(Path("data", asked.dataset, "samples.parquet"))
    parted = {name: folds(name, table, asked.split_seed) for name in asked.protocols}
    rows = study_rows(params.record_task, asked.dataset, asked.rows or None)
    main = [*rows, *good_only(rows)]
    tried, unavailable = ablations(rows, asked.dataset, asked.questions) if asked.ablate and HEADLINE in asked.protocols else ([], {})
    tried, others = _comparable([row for row in tried if row.protocol in parted])
    data = {Path(): fingerprint(asked.dataset)} | {row.tokens.project: row.tokens.data_key() for row in tried if row.tokens}
    cells = [(name, cell) for name in asked.protocols for row in main for cell in _cells(asked, row, parted[name], data)]
    cells += [(row.protocol, cell) for row in tried for cell in _cells(asked, row, parted[row.protocol], data)]
    return Plan(asked, table, parted, main, tried, unavailable | others, cells)


def _comparable(rows: Sequence[StudyRow]) -> tuple[list[StudyRow], dict[str, str]]:
    """Those whose tokens are of the same records, as far as these are made; and why the others are not fitted."""
    made = {row.tokens.project: row.tokens for row in rows if row.tokens and not row.tokens.left}
    other = {project: reason for project, one in made.items() if (reason := other_records(one))}
    gone = {row.name: other[row.tokens.project] for row in rows if row.tokens and row.tokens.project in other}
    return [row for row in rows if row.name not in gone], gone


def _cells(asked: Asked, row: StudyRow, parted: Folds, data: dict[Path, str]) -> list[Cell]:
    """data: by the project of the tokens their fingerprint."""
    project = row.tokens.project if row.tokens else Path()
    few = not asked.every_seed and (row.question or parted.protocol not in EVERY_SEED)
    seeds = artefact.seeds(row.detector, list(asked.seeds[:1] if few else asked.seeds))
    code, full = code_hash(row), row._replace(options=settled(row))
    keys = {(fold.name, seed): key_of(full, fold, seed, data[project], code) for fold in parted.folds for seed in seeds}
    return [Cell(asked.dataset, row, fold, seed, keys[fold.name, seed], project) for fold in parted.folds for seed in seeds]


def run(params: Params, asked: Asked, out: Path = OUT) -> tuple[int, Plan]:
    """Compute what is not there, tokens first, then write every table that can be made. The exit code, and what was planned."""
    planned = plan(params, asked)
    if waiting_for := [one for one in planned.variations if one.left]:
        for one in waiting_for:
            make(one)
        planned = plan(params, asked)  # keys hang on what was made
    folder = out / CELLS
    waiting = {cell.key: cell for _, cell in planned.cells if not file_of(folder, cell.key).is_file()}
    code = _computed(params, planned, list(waiting.values()), folder)
    if code == errors.OK:
        from stages.serving import weld_tables

        weld_tables.write(planned, out)
    return code, planned


def _computed(params: Params, planned: Plan, waiting: Sequence[Cell], folder: Path) -> int:
    rows = {row["record_id"]: {name: row[name] for name in COLUMNS} for row in planned.table}
    units = []
    for cell in waiting:
        own = {one: rows[one] for part in cell.fold[1:] for one in part}
        units.append(engine.Unit(cell.name, {"cell": cell, "device": params.compute.device, "folder": folder, "rows": own}))
    total = len({cell.key for _, cell in planned.cells})
    with progress(f"study of {planned.asked.dataset}", total, total - len(waiting)) as advance:
        outcomes = engine.run(
            compute, units, processes=params.compute.processes, threads=params.compute.threads, preload=("torch", "stages.training"),
            done=lambda outcome: advance(1),
        )  # fmt: skip
    return engine.exit_code("study", outcomes)


def found(planned: Plan, row: str, protocol: str, out: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of one row under one protocol with what their files say; of `_computed` all are there."""
    return [(cell, io.read_json(file_of(out / CELLS, cell.key))) for cell in planned.of(row, protocol)]


def folds_told(planned: Plan) -> dict[str, Any]:
    """What folds.json holds."""
    return {
        name: {
            "what": PROTOCOLS[name],
            "seeds": list(planned.asked.seeds if planned.asked.every_seed or name in EVERY_SEED else planned.asked.seeds[:1]),
            "folds": [described(fold, planned.table) for fold in one.folds],
            "skipped": one.skipped,
        }
        for name, one in planned.folds.items()
    }


def budget(planned: Plan, out: Path = OUT) -> list[dict[str, Any]]:
    """By protocol how many cells there are and how many of them are done."""
    lines = []
    for name in dict.fromkeys(under for under, _ in planned.cells):
        for what, kind in (("rows", False), ("ablations", True)):
            keys = {cell.key for under, cell in planned.cells if under == name and bool(cell.row.question) == kind}
            if keys:
                done = sum(file_of(out / CELLS, key).is_file() for key in keys)
                lines.append({"protocol": name, "what": what, "cells": len(keys), "done": done})
    return lines
