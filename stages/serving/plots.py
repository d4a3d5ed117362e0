"""`assay plots series`: every picture of a finished search, each beside a CSV of the numbers in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.errors import UserError
from stages.serving.terminal import as_text

if TYPE_CHECKING:
    from stages.plots.series_figure import Figure

app = typer.Typer(no_args_is_help=True, help="Draw what a finished experiment found.")


@app.callback()
def _group() -> None:
    """So that `series` stays a command of its own beside those that may come."""


@app.command()
def series(
    experiment_dir: Annotated[Path, typer.Option("--experiment-dir", help="The folder of a finished `assay search series`.")],
    only: Annotated[
        list[str] | None, typer.Option(help="Only these: data, architecture, stage1, stage2, best_model, training_progress.")
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the best model once more, to draw how it learns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write visualization/<group>/<name>.png and .csv into the folder. What cannot be drawn from it is said."""
    from stages.plots.series_figure import NAMES
    from stages.serving import experiment_pictures

    if unknown := [name for name in only or () if name not in NAMES]:
        raise UserError(f"--only must be one of {', '.join(NAMES)}, got {unknown[0]!r}")
    experiment = experiment_pictures.open_experiment(experiment_dir)
    found = experiment_pictures.groups(experiment, [name for name in NAMES if not only or name in only], retrain)
    written = {group.name: [_write(experiment_dir / "visualization" / group.name, figure) for figure in group.figures] for group in found}
    if as_json:
        typer.echo(as_text({"written": written, "missing": {group.name: group.missing for group in found if group.missing}}))
        return
    for group in found:
        pictures = f"{len(written[group.name])} pictures" if group.missing is None else f"not drawn: {group.missing}"
        typer.echo(f"{group.name:18} {pictures}")
    typer.echo(f"in {experiment_dir / 'visualization'}")


def _write(folder: Path, figure: Figure) -> str:
    """Both files; returns the path of the picture."""
    from stages import io

    io.write_bytes(folder / f"{figure.name}.png", figure.png())
    io.write_text(folder / f"{figure.name}.csv", figure.csv())
    return str(folder / f"{figure.name}.png")
