"""The command `assay`: what a person types. Every command takes --json; exit codes are 0 (done), 1 (something to mend), 2 (a defect of Assay).

Heavy imports happen inside the command that needs them, so that `assay --help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from stages import errors, params

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0])
data = typer.Typer(no_args_is_help=True, help="Look at data before it is used.")
weights = typer.Typer(no_args_is_help=True, help="Where pretrained weights lie, and how to bring missing ones across an air gap.")
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Folder = Annotated[Path | None, typer.Option(help="Local folder of weights; the key `backbones` of params.yaml by default.")]


@data.command("check")
def data_check(
    directory: Annotated[Path, typer.Argument(help="The folder that holds the images, or a CSV file.")],
    adapter: Annotated[
        str | None, typer.Option(help="The layout, where it should not be guessed: mvtec, visa, btad, magnetic_tile, folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which layout a folder has, what is wrong with it, and what Assay will do. Changes nothing. Exit code 1 where it cannot go on."""
    from stages.datasets import check

    found = check.check(directory, adapter)
    typer.echo(json.dumps(check.as_json(found), indent=2, ensure_ascii=False) if as_json else check.render(found))
    raise typer.Exit(errors.OK if found.ok else errors.MENDABLE)


@weights.command("list")
def weights_list(backbones: Folder = None, as_json: Json = False) -> None:
    """Every known set of weights: present or absent, size, licence, and who uses it."""
    from stages.encoders import weights_bundle

    _show(weights_bundle.list_weights(_backbones(backbones)), as_json, ("name", "place", "bytes", "licence"))


@weights.command("verify")
def weights_verify(backbones: Folder = None, as_json: Json = False) -> None:
    """Check the SHA-256 of every set of weights that is here. Exit code 1 where one is altered."""
    from stages.encoders import weights_bundle

    rows = weights_bundle.verify(_backbones(backbones))
    _show(rows, as_json, ("name", "status", "detail"))
    raise typer.Exit(errors.MENDABLE if any(row["status"] == "altered" for row in rows) else errors.OK)


@weights.command("pack")
def weights_pack(
    names: Annotated[list[str], typer.Argument(help="Names from `assay weights list`, or any timm name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fill, for instance on a USB stick.")],
    download: Annotated[bool, typer.Option(help="Fetch what is missing here. Only for a machine with network.")] = False,
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Gather weights with their checksums and licences into a folder that can be carried to another machine."""
    from stages.encoders import weights_bundle

    _show(weights_bundle.pack(names, out, _backbones(backbones), download), as_json, ("name", "bytes", "sha256"))


@weights.command("unpack")
def weights_unpack(
    bundle: Annotated[Path, typer.Argument(help="The folder that `assay weights pack` filled.")],
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Take packed weights into the local folder, after checking every checksum."""
    from stages.encoders import weights_bundle

    _show(weights_bundle.unpack(bundle, _backbones(backbones)), as_json, ("name", "bytes", "sha256"))


@app.command()
def leaderboard(as_json: Json = False, markdown: Annotated[bool, typer.Option(help="Print Markdown tables.")] = False) -> None:
    """Every model of every data set, ranked, with 95 % intervals; then the path of the report page."""
    from stages.serving import leaderboard as board

    tables = board.leaderboard(params.load())
    if not tables:
        raise errors.Missing("no results in metrics/ yet. Run `dvc repro`.")
    if as_json:
        typer.echo(json.dumps({dataset: [row._asdict() for row in rows] for dataset, rows in tables.items()}, indent=2))
        return
    typer.echo(board.markdown(tables) if markdown else board.render(tables))
    page = Path("metrics/report/index.html")
    if page.is_file() and not markdown:
        typer.echo(f"report: {page.resolve()}")


def _backbones(folder: Path | None) -> Path:
    return folder or (params.load().backbones_folder if params.PATH.is_file() else Path("backbones"))


def _show(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    """All of every row as JSON, or the named columns as a table; what is None reads "absent"."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*("absent" if row[column] is None else str(row[column]) for column in columns))
    Console().print(table)


def main() -> None:
    """Entry point: mendable errors are one line on stderr; --debug shows where any error came from."""
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[errors.DEBUG] = "1"
    try:
        code = errors.guarded(lambda: app(standalone_mode=False))
    except typer.Abort:
        code = errors.MENDABLE
    except Exception as error:
        code = _explain(error)
    sys.exit(code)


def _explain(error: Exception) -> int:
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # what typer raises for a wrong command line
        error.show()
        return errors.MENDABLE
    if os.environ.get(errors.DEBUG):
        traceback.print_exc()
    print(f"{type(error).__name__}: {error}\nThis is a defect of Assay; --debug shows where.", file=sys.stderr)
    return errors.DEFECT


if __name__ == "__main__":
    main()
