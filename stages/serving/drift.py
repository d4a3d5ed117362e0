"""`assay drift`: what of the records has moved since training, how much of that chance would give, and which settings no model has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages import errors, params
from stages.serving.terminal import as_text


def drift(
    dataset: Annotated[str, typer.Option(help="A data set of records of params.yaml, prepared and extracted.")] = "weld",
    against: Annotated[str | None, typer.Option(help="Hold this split against the training records: test or val.")] = None,
    new: Annotated[
        Path | None, typer.Option(help="Hold these: a folder of media or of .pt files, a list of them, or a packed store.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A row of params.yaml: also its scores, beside those of validation, and the settings it has seen.")
    ] = None,
    normal_alone: Annotated[
        bool, typer.Option("--normal-alone", help="Of splits the normal records alone, for new records that are nearly all good.")
    ] = False,
    permutations: Annotated[int, typer.Option(min=99, help="How often sessions are shuffled between the sides.")] = 999,
    everything: Annotated[bool, typer.Option("--all", help="Print every statistic, not those alone that moved most.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for drift.json and drift.csv.")] = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit code 1 where anything moved or a setting was never seen.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Has the process moved? Sensors, embeddings, missing media, settings and scores beside those of training, and beside what chance gives."""
    from stages.serving.drift_report import measure, render, write

    found = measure(params.load(), dataset, against, new, model, normal_alone, permutations)
    if out is not None:
        write(found, out)
    typer.echo(as_text(found) if as_json else render(found, everything))
    if out is not None and not as_json:
        typer.echo(f"written to {out.as_posix()}/: drift.json, drift.csv")
    raise typer.Exit(errors.MENDABLE if fail_on_drift and (found["verdict"] == "moved" or found["settings"]["outside"]) else errors.OK)
