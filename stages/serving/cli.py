"""The command `assay`: what a person types. Every command takes --json; exit codes are 0 (done), 1 (something to mend), 2 (a defect of Assay).

Each command reads its arguments, calls one function that lies beside this file and prints what it returns. Heavy imports happen inside the
command that needs them, so that `assay --help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from stages import errors, params
from stages.serving import drift, embed, main_multi, plots, records, search, weights, weld
from stages.serving.terminal import as_text, show
from stages.serving.weights import Folder, backbones_folder

if TYPE_CHECKING:
    from stages.serving.series_model import SeriesModel

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.splitlines()[0])
data = typer.Typer(no_args_is_help=True, help="Look at data before it is used.")
models = typer.Typer(no_args_is_help=True, help="The named configurations of all detectors.")

BEGIN, RUN, JUDGE, LEARN, MEDIA = "Begin", "Run the pipeline", "Judge", "Search and train", "Records and welds"  # parts of the help

All = Annotated[bool, typer.Option("--all", help="Everything that params.yaml has.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names of data sets, or of runs, as params.yaml has them.", show_default=False)]
Layout = Annotated[
    str | None, typer.Option("--adapter", help="The layout, where it should not be guessed: mvtec, visa, btad, magnetic_tile, folder; of records "
                 "media_folder, stored_records, intel_welding, mimic_cxr, spot_the_diff.")
]  # fmt: skip
Signals = Annotated[bool, typer.Option("--signals", help="It holds signals, not images: CSV or parquet files, a row a step.")]
OfRecords = Annotated[
    bool, typer.Option("--records", help="It holds records that several media show: those media, or .pt files of their embeddings.")
]


PICTURES = Path("predictions")
Schedule = Annotated[str, typer.Option(help="Of a named configuration: full (the paper's), quick, or cpu (small, on what is built in).")]


@app.command(rich_help_panel=BEGIN)
def doctor(as_json: Json = False) -> None:
    """Say whether everything will run here, and what mends what will not. Exit code 1 where something needs mending."""
    from stages.serving import doctor as surgery

    findings = surgery.examine()
    typer.echo(as_text([finding._asdict() for finding in findings]) if as_json else surgery.render(findings))
    raise typer.Exit(errors.MENDABLE if any(not finding.ok and finding.matters for finding in findings) else errors.OK)


@data.command("check")
def data_check(
    directory: Annotated[Path, typer.Argument(help="The folder that holds the images, or a CSV file.")],
    adapter: Layout = None,
    write_csv: Annotated[Path | None, typer.Option(help="Write the labels found as a CSV, to correct by hand and read back.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a PNG with a few images of every type.")] = None,
    signals: Signals = False,
    of_records: OfRecords = False,
    as_json: Json = False,
) -> None:
    """Say which layout a folder has, what is wrong with it, and what Assay will do. Changes nothing. Exit code 1 where it cannot go on."""
    _require_images(signals=signals, records=of_records, given={"--write-csv": write_csv, "--sheet": sheet})
    if signals:
        from stages.serving import signal_check

        recordings = signal_check.examine(directory, adapter)
        typer.echo(as_text([one._asdict() for one in recordings]) if as_json else signal_check.render(recordings))
        return
    if of_records:
        from stages.serving import record_check

        examined = record_check.examine(directory, adapter)
        typer.echo(as_text(examined.as_json()) if as_json else record_check.render(examined))
        raise typer.Exit(errors.OK if examined.ok else errors.MENDABLE)
    from stages.datasets import check
    from stages.datasets.splits import Rule

    protocol = params.load().protocol if params.PATH.is_file() else None
    rule = Rule(protocol.split_seed, protocol.val_fraction, protocol.test_fraction) if protocol else check.RULE
    found = check.check(directory, adapter, rule, write_csv, sheet)
    typer.echo(as_text(check.as_json(found)) if as_json else check.render(found))
    raise typer.Exit(errors.OK if found.ok else errors.MENDABLE)


@app.command("add", rich_help_panel=BEGIN)
def add_data(
    directory: Annotated[Path, typer.Argument(help="The folder that holds the images, or a CSV file.")],
    name: Annotated[str | None, typer.Option(help="What to call the data set; the folder's name by default.")] = None,
    adapter: Layout = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model, of params.yaml or of `assay models list`; may be given more than once.")
    ] = None,
    schedule: Schedule = "full",
    canvas: Annotated[
        str | None, typer.Option(help="For small defects on large images: cut them into tiles at this size in pixels, e.g. 2048 or 2000x8000.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="Of neighbouring tiles, in pixels; an eighth of a tile by default.")] = None,
    signals: Signals = False,
    of_records: OfRecords = False,
    as_json: Json = False,
) -> None:
    """Write a data set of your own into params.yaml and dvc.yaml, then say what to do next. Comments in the files stay."""
    from stages.serving import add

    own = {"--schedule": schedule != "full", "--canvas": canvas, "--overlap": overlap is not None}
    _require_images(signals=signals, records=of_records, given=own)
    if of_records:
        added = add.add_records(directory, name, adapter, model or ())
    elif signals:
        added = add.add_signals(directory, name, adapter or "signal_folder", model or ())
    else:
        added = add.add(directory, name, adapter, model or (), schedule, _sides(canvas), overlap)
    typer.echo(as_text(added._asdict()) if as_json else add.render(added))


@app.command(rich_help_panel=RUN)
def pipeline(
    name: Annotated[str, typer.Argument(help="What to call the data set, e.g. mvtec.")],
    source: Annotated[str, typer.Argument(help="Where it lies, absolute or as seen from pipelines/NAME.")],
    adapter: Annotated[str, typer.Option(help="Its layout: mvtec, visa, btad, magnetic_tile, folder.")] = "folder",
    schedule: Schedule = "full",
    as_json: Json = False,
) -> None:
    """Write pipelines/NAME: all named configurations on one data set, with locks of its own. `dvc repro pipelines/NAME/runs/dvc.yaml` runs it."""
    from stages.serving import pipelines

    written = [path.as_posix() for path in pipelines.write(name, source, adapter, schedule)]
    typer.echo(as_text({"written": written}) if as_json else "\n".join([*written, "", "next:", f"  dvc repro {written[-1]}"]))


@app.command(rich_help_panel=RUN)
def train(names: Names = None, everything: All = False, as_json: Json = False) -> None:
    """Fit the models of one run or data set."""
    _run("train", names, everything, as_json)


@app.command(rich_help_panel=RUN)
def evaluate(
    names: Names = None,
    everything: All = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Also write outputs/ and results/ in here: models, thresholds, pictures, tables.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge the fitted models of one run or data set."""
    done = _run("evaluate", names, everything, as_json)
    if output_dir is not None:
        from stages.serving import outputs

        for name in done:
            outputs.write_trees(Path(), name, output_dir)


@app.command(rich_help_panel=RUN)
def ensemble(names: Names = None, everything: All = False, as_json: Json = False) -> None:
    """Ask several models of a data set at once: one more row, and which of them are wrong together."""
    _run("ensemble", names, everything, as_json)


@app.command(rich_help_panel=RUN)
def bench(names: Names = None, everything: All = False, as_json: Json = False) -> None:
    """Measure latency, memory and size of every model on a data set."""
    _run("bench", names, everything, as_json)


@app.command("run", rich_help_panel=RUN)
def run_configuration(
    config: Annotated[Path, typer.Argument(help="A configuration, e.g. configs/mvtec_winclip.yaml.")],
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<number>, in place of model.device.")] = None,
    as_json: Json = False,
) -> None:
    """Run one experiment from its YAML file: train, judge, measure, and write the result tree that it names."""
    from stages.serving import experiment

    done = experiment.run(config, device, sys.stderr if as_json else sys.stdout)
    typer.echo(as_text(done._asdict()) if as_json else f"\n{done.summary}\nresults: {done.folder.resolve()}")


@app.command(rich_help_panel=RUN)
def report(as_json: Json = False) -> None:
    """Make the report page again from what is in metrics/."""
    from stages.serving import verbs

    if code := verbs.run("report", out=sys.stderr):
        raise typer.Exit(code)
    page = Path("metrics/report/index.html").resolve()
    typer.echo(as_text({"report": page.as_posix()}) if as_json else f"report: {page}")


@app.command(rich_help_panel=JUDGE)
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="Image files, or folders with images; with --follow, one CSV file; of records, .pt files, or media as in image=a.png."),
    ],
    dataset: Annotated[str | None, typer.Option(help="The data set that the model learnt from, where there are several.")] = None,
    category: Annotated[str | None, typer.Option(help="Its category, where there are several.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; the one that the report recommends by default.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = PICTURES,
    threshold: Annotated[float | None, typer.Option(help="A threshold of your own on the raw score.")] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Another promise from the same held-out good parts: the share that may raise an alarm, e.g. 0.02.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Judge the rows of a CSV file as they arrive, until Ctrl-C.")] = False,
    once: Annotated[bool, typer.Option("--once", help="As --follow, but stop at the end of the file.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Where --follow keeps its place, to go on from; FILE.follow.safetensors by default.")
    ] = None,
    fact: Annotated[
        list[str] | None, typer.Option(help="Of records, NAME=VALUE: a setting, held against what the model has seen. May be given again.")
    ] = None,
    refuse_outside: Annotated[
        bool, typer.Option("--refuse-outside", help="Of records: one whose setting the model has not seen gets the verdict review.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge new images: raw score, percentile among good parts, verdict, margin, and a picture of each. With --follow: the rows of a signal."""
    from stages.serving.record_predict import is_record

    of_records = not (follow or once) and any(map(is_record, images))
    if not of_records and (fact or refuse_outside):
        raise errors.UserError("--fact and --refuse-outside are for records: .pt files, or media as in image=part.png. Leave them out")
    if follow or once:
        if len(images) != 1 or false_alarm_rate is not None:
            raise params.ParamsError("--follow takes one CSV file, and --threshold where the stored one should not be used")
        from stages.serving import series_model

        _follow(images[0], series_model.choose(params.load(), Path(), dataset, category, model), threshold, once, state, as_json)
        return
    if of_records:
        _require_images(records=True, given={"--category": category, "--out": out != PICTURES})
        _predict_records(images, dataset, model, threshold, false_alarm_rate, as_json, fact or (), refuse_outside)
    from stages.serving import predict as serve
    from stages.serving.reference import choose, threshold_of

    settings, files = params.load(), serve.find_images(images)
    chosen = choose(settings, Path(), dataset, category, model)
    limit = threshold_of(chosen, threshold, false_alarm_rate)
    if not as_json:
        typer.echo(serve.head(chosen, limit))
    verdicts = []
    for verdict in serve.predict(settings, chosen, files, out, limit):
        verdicts.append(verdict)
        if not as_json:
            typer.echo(serve.render(verdict))
    if as_json:
        typer.echo(as_text([verdict._asdict() for verdict in verdicts]))
    raise typer.Exit(errors.MENDABLE if any(verdict.verdict == serve.UNREADABLE for verdict in verdicts) else errors.OK)


@app.command(rich_help_panel=LEARN)
def tune(
    model: Annotated[str, typer.Argument(help="A model of params.yaml.")],
    dataset: Annotated[str | None, typer.Option(help="The data set, where several run this model.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be given more than once.")] = None,
    budget_minutes: Annotated[float, typer.Option(help="No trial begins that would not end in this time.")] = 10,
    trials: Annotated[int | None, typer.Option(help="Stop after so many trials in all, earlier ones included.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws and of the planted defects.")] = 0,
    space: Annotated[Path | None, typer.Option(help="A YAML file of `option: [values]` or `option: {low, high, log}`: only these.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the earlier trials of this search.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best into params.yaml, where it is better.")] = False,
    as_json: Json = False,
) -> None:
    """Search a model's parameters on held-out images, never on test images. Called again, it goes on."""
    from stages.serving import tune as tuning

    tuned = tuning.tune(
        model, dataset, category or (), budget_s=60 * budget_minutes, trials=trials, seed=seed, space=space, restart=restart, apply=apply,
        say=lambda text: typer.echo(text, err=as_json),
    )  # fmt: skip
    typer.echo(as_text(tuning.as_dict(tuned)) if as_json else tuning.render(tuned))


@models.command("list")
def models_list(backbones: Folder = None, as_json: Json = False) -> None:
    """Every named configuration: backbone, size, schedules (epochs x batch), weights and whether they are here."""
    from stages.serving import models as known

    found = known.listed(backbones_folder(backbones))
    show(found if as_json else known.as_rows(found), as_json, ("name", "category", "backbone", "size", "full", "quick", "weights", "paper"))


@models.command("add")
def models_add(
    names: Annotated[list[str], typer.Argument(help="Configurations or aliases, as `assay models list` has them.")],
    dataset: Annotated[str, typer.Option(help="The data set of params.yaml to run them on.")],
    schedule: Schedule = "full",
    as_json: Json = False,
) -> None:
    """Write runs of named configurations into params.yaml, with the encoders that they need. `dvc repro` runs them."""
    from stages.serving import add

    added = add.add_models(dataset, names, schedule)
    typer.echo(
        as_text({"runs": added}) if as_json else "\n".join(["added to params.yaml:", *(f"  {run}" for run in added), "next: dvc repro"])
    )


@models.command("page")
def models_page(as_json: Json = False) -> None:
    """The page docs/models.md: every method with its idea, formula, deviations and configurations."""
    from stages.serving import models as known

    typer.echo(as_text({"markdown": known.page()}) if as_json else known.page(), nl=as_json)


@models.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="A configuration or an alias.")], backbones: Folder = None, as_json: Json = False
) -> None:
    """All of one configuration, and the entries of params.yaml that it stands for; JSON with and without --json."""
    from stages.detectors import zoo
    from stages.serving import models as known

    typer.echo(as_text({**known.described(name, backbones_folder(backbones)), "entries": zoo.entries(name)._asdict()}))


@app.command("train-afclip", rich_help_panel=LEARN)
def train_afclip(
    dataset: Annotated[str, typer.Argument(help="A prepared data set with masks. Its test images are learnt from, so it cannot be judged.")],
    encoder: Annotated[str, typer.Option(help="An encoder of kind clip in params.yaml whose features of that data set are stored.")],
    name: Annotated[str | None, typer.Option(help="Of the checkpoint; afclip-DATASET by default.")] = None,
    epochs: int = 2,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 122,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbones: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of AF-CLIP or miniCLIP, to judge other data sets with. Started again after a stop, it goes on."""
    from stages.serving import train_afclip as training

    typer.echo(training.protocol(dataset, training.marked_rows(dataset)), err=as_json)
    schedule = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # a run that goes on says so
        made = training.train(dataset, encoder, name or f"afclip-{dataset}", backbones_folder(backbones), device=device, **schedule)
    show([made._asdict()], as_json, ("name", "file", "steps", "first_loss", "last_loss"))


@app.command(rich_help_panel=RUN)
def leaderboard(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option(help="Print Markdown tables.")] = False,
    collect: Annotated[
        Path | None, typer.Option(help="Compare the result trees in this folder instead, DATASET/METHOD/EXPERIMENT/summary_metrics.csv.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where comparison.csv, .md and .png go; with --collect, its folder by default.")
    ] = None,
) -> None:
    """Every model of every data set, ranked, with 95 % intervals; then the path of the report page."""
    from stages.serving import leaderboard as board

    if collect is not None:
        _collect(collect, out or collect, as_json, markdown)
        return
    tables = board.leaderboard(params.load())
    if not tables:
        raise errors.Missing("no results in metrics/ yet. Run `dvc repro`.")
    if as_json:
        typer.echo(as_text({dataset: [row._asdict() for row in rows] for dataset, rows in tables.items()}))
        return
    typer.echo(board.markdown(tables) if markdown else board.render(tables))
    page = Path("metrics/report/index.html")
    if page.is_file() and not markdown:
        typer.echo(f"report: {page.resolve()}")


app.command("drift", rich_help_panel=JUDGE)(drift.drift)
app.command("extract", rich_help_panel=MEDIA)(embed.extract)
app.command("main-multi", rich_help_panel=MEDIA)(main_multi.main_multi)
app.add_typer(data, name="data", rich_help_panel=BEGIN)
app.add_typer(weights.app, name="weights", rich_help_panel=BEGIN)
app.add_typer(models, name="models", rich_help_panel=BEGIN)
app.add_typer(plots.app, name="plots", rich_help_panel=JUDGE)
app.add_typer(search.app, name="search", rich_help_panel=LEARN)
app.add_typer(records.app, name="records", rich_help_panel=MEDIA)
app.add_typer(weld.app, name="weld", rich_help_panel=MEDIA)


def _collect(folder: Path, out: Path, as_json: bool, markdown: bool) -> None:
    from stages.serving import collect

    rows = collect.collect(folder)
    written = [path.as_posix() for path in collect.write(rows, out)]
    if as_json:
        typer.echo(as_text({"rows": rows, "written": written}))
    elif markdown:
        typer.echo(collect.markdown(rows))
    else:
        typer.echo("\n".join([collect.render(rows), *written]))


def _run(verb: str, names: list[str] | None, everything: bool, as_json: bool) -> list[str]:
    """Run one verb for each name; the others go on after a failure, and then the worst exit code is ours. Returns the names it ran for."""
    from stages.serving import verbs

    wanted = verbs.jobs(params.load(), verb, names or (), everything)
    codes = {name: verbs.run(verb, name, out=sys.stderr if as_json else sys.stdout) for name in wanted}
    if as_json:
        typer.echo(as_text(codes))
    if worst := max(codes.values(), default=errors.OK):
        raise typer.Exit(worst if worst in (errors.MENDABLE, errors.DEFECT) else errors.DEFECT)
    return wanted


def _require_images(*, given: dict[str, Any], signals: bool = False, records: bool = False) -> None:
    """Raises UserError for signals that are records, and for flags of images where there are none. given: flag -> what it was given, if anything."""
    if signals and records:
        raise errors.UserError("--signals and --records exclude each other. Say what it holds")
    if (signals or records) and (idle := [flag for flag, value in given.items() if value]):
        what = "signals" if signals else "records"
        raise errors.UserError(f"{', '.join(idle)}: for images only, {what} have nothing of the kind. Leave it out")


def _sides(canvas: str | None) -> tuple[int, int] | None:
    """Height and width from "2048" or "2000x8000"."""
    if canvas is None:
        return None
    sides = canvas.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise errors.UserError(f"--canvas is a size in pixels, 2048 or HEIGHTxWIDTH as in 2000x8000; got {canvas!r}")
    return int(sides[0]), int(sides[-1])


def _follow(path: Path, chosen: SeriesModel, threshold: float | None, once: bool, state: Path | None, as_json: bool) -> None:
    """One line for each row as it is judged; with as_json, one JSON object. What happens to the file is said on stderr."""
    from stages.serving import follow as serve

    limit = chosen.threshold if threshold is None else threshold
    if not as_json:
        typer.echo(serve.head(chosen, limit))
    with serve.until_interrupted() as stop:
        for verdict in serve.open_follower(path, chosen, limit, state).follow(stop, once=once, say=lambda text: typer.echo(text, err=True)):
            typer.echo(json.dumps(verdict._asdict(), ensure_ascii=False) if as_json else serve.render(verdict))


def _predict_records(
    arguments: list[Path],
    dataset: str | None,
    model: str | None,
    threshold: float | None,
    false_alarm_rate: float | None,
    as_json: bool,
    facts: Sequence[str],
    refuse_outside: bool,
) -> NoReturn:
    from stages.serving import record_predict as serve
    from stages.serving.record_model import choose, threshold_of
    from stages.serving.setting_check import check_of

    settings, (files, media) = params.load(), serve.given(arguments)
    chosen = choose(settings, Path(), dataset, model)
    limit, verdicts = threshold_of(chosen, threshold, false_alarm_rate), []
    if not as_json:
        typer.echo(serve.head(chosen, limit))
    for verdict in serve.predict(settings, chosen, files, media, limit, check_of(chosen, facts, refuse_outside)):
        verdicts.append(verdict)
        if not as_json:
            typer.echo(serve.render(verdict))
    if as_json:
        typer.echo(as_text([verdict._asdict() for verdict in verdicts]))
    raise typer.Exit(errors.MENDABLE if any(verdict.score is None for verdict in verdicts) else errors.OK)


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
