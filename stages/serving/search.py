"""`assay search series`: the whole two-stage search over the masked autoencoder, in a folder that can be gone on with at any time."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.errors import UserError
from stages.serving.terminal import as_text, show

if TYPE_CHECKING:
    from stages.timeseries.search.plan import Plan
    from stages.timeseries.search.two_stage import Found

EXPERIMENTS = Path("results/experiments")
SHOWN = 10
PLANNED = ("grid", "regime", "category", "seed", "data_seed", "batch_size", "faithful", "quick_steps", "full_steps", "device", "out")
FIGURES = ("val_roc_auc", "test_roc_auc", "test_pr_auc", "test_disturbing_auc")

app = typer.Typer(no_args_is_help=True, help="Search the configurations of a model over a grid.")


@app.callback()
def _group() -> None:
    """So that `series` stays a command of its own beside those that may come."""


@app.command()
def series(
    ctx: typer.Context,
    grid: Annotated[str, typer.Option(help="seed or improved: 432 combinations each.")] = "seed",
    regime: Annotated[str, typer.Option(help="What training may know of anomalies: weak, unsup-contaminated, unsup-clean, synth-erase.")] = "weak",
    category: Annotated[str, typer.Option(help="How strong the anomalies are: easy, medium, hard.")] = "medium",
    seed: Annotated[int, typer.Option(help="Of the training and of the order.")] = 0,
    data_seed: Annotated[int, typer.Option(help="Of the signals.")] = 100,
    batch_size: Annotated[int | None, typer.Option(help="Of training; the learning rate goes with its cube root.")] = None,
    faithful: Annotated[bool, typer.Option("--faithful", help="Batches of 32 and dropout .1, as the grid was first searched. Slower.")] = False,
    quick_steps: Annotated[int | None, typer.Option(help="Length of the signal of the quick stage; 200000 by default.")] = None,
    full_steps: Annotated[int | None, typer.Option(help="Length of the signal of the full stage; 440000 by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    quick_only: Annotated[bool, typer.Option("--quick-only", help="Leave the full stage out.")] = False,
    select: Annotated[str, typer.Option(help="What goes on to the full stage: diverse or top-k.")] = "diverse",
    keep: Annotated[tuple[int, int], typer.Option(help="The fewest and the most that go on.")] = (50, 70),
    workers: Annotated[int, typer.Option(help="Combinations at a time, each in a process with one thread.")] = 1,
    budget_minutes: Annotated[float | None, typer.Option(help="Of each stage: none begins after it. What is done is a random sample.")] = None,
    max_combinations: Annotated[int | None, typer.Option(help="Of the quick stage in all.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A folder of an earlier call: go on with what was asked there.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder; results/experiments/YYYYMMDD_HHMMSS by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:  # fmt: skip
    """Fit every combination quickly, choose 50 to 70 on a validation block, fit them in full, keep the best. Stopped at any time, --resume goes on."""
    from stages.timeseries.search import outputs
    from stages.timeseries.search.two_stage import Limits, search

    started, folder = time.monotonic(), resume or out or EXPERIMENTS / time.strftime("%Y%m%d_%H%M%S")
    if resume is None:
        plan = _begin(folder, grid, regime, category, seed, data_seed, device, batch_size, faithful, quick_steps, full_steps)
    else:
        plan = _go_on(folder, ctx)

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    say(
        f"{folder}: grid {plan.grid}, regime {plan.regime}, {len(plan.points)} combinations. Stopped, `assay search series --resume {folder}` goes on"
    )
    budget_s = None if budget_minutes is None else 60 * budget_minutes
    found = search(plan, folder, Limits(workers, 1, budget_s, max_combinations, quick_only, select, keep), say)
    config = outputs.write(found, folder, _about(found, workers, started))
    rows = sorted(outputs.final_table(found), key=lambda row: (-row["val_roc_auc"], row["number"]))
    if as_json:
        typer.echo(as_text({"folder": folder, "stage": found.final, "best": config, "rows": rows}))
        return
    show(rows[:SHOWN], False, ("number", *config["levels"], *FIGURES))
    say(f"the best of the {found.final} stage by validation, in regime {plan.regime}; all of it is in {folder}")


def _begin(
    folder: Path,
    grid: str,
    regime: str,
    category: str,
    seed: int,
    data_seed: int,
    device: str,
    batch_size: int | None,
    faithful: bool,
    quick_steps: int | None,
    full_steps: int | None,
) -> Plan:
    """The plan of a new search, written down in its folder."""
    from stages.datasets.server_metrics import GAINS
    from stages.timeseries.detector import REGIMES
    from stages.timeseries.search import origin
    from stages.timeseries.search.grid import GRIDS
    from stages.timeseries.search.plan import FAITHFUL, FULL, QUICK, Plan

    for option, value, known in (("--grid", grid, GRIDS), ("--regime", regime, REGIMES), ("--category", category, GAINS)):
        if value not in known:
            raise UserError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    changes = FAITHFUL if faithful else {"batch_size": batch_size or QUICK.batch_size}
    quick = QUICK._replace(steps=quick_steps or QUICK.steps, **changes)
    full = FULL._replace(steps=full_steps or FULL.steps, **changes)
    plan = Plan(grid, regime, GAINS[category], seed, data_seed, device=device, quick=quick, full=full)
    origin.begin(folder, plan)
    return plan


def _go_on(folder: Path, ctx: typer.Context) -> Plan:
    from stages.timeseries.search import origin

    given = [name for name in PLANNED if ctx.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        raise UserError(
            f"--resume goes on with what was asked in {folder}: leave out {', '.join('--' + name.replace('_', '-') for name in given)}"
        )
    return origin.go_on(folder)


def _about(found: Found, workers: int, started: float) -> dict[str, Any]:
    """What differs from one machine and one call to the next."""
    from stages.search_series import versions

    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "versions": versions(),
        "commit": done.stdout.strip() or None,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(), "workers": workers},
        "wall_s": round(time.monotonic() - started, 1),
        "seconds": {
            name: round(sum(line["seconds"] for line in lines), 1) for name, lines in (("quick", found.quick), ("full", found.full))
        },
    }
