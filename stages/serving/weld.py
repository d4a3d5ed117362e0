"""`assay weld`: training and judging a data set of welds by hand, and the study that compares every model on it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stages import errors, io, params
from stages.serving.terminal import as_text, show

app = typer.Typer(no_args_is_help=True, help="Records of a process and its result: train by hand, evaluate, compare everything.")

Dataset = Annotated[str, typer.Option(help="A data set of records of params.yaml.")]
Model = Annotated[str, typer.Option(help="A row of params.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Seed = Annotated[int | None, typer.Option(help="This seed alone.")]


@app.command()
def train(
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    quick_test: Annotated[bool, typer.Option("--quick-test", help="Two records a class, a few steps: does it run at all?")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the first batch, and how many parameters there are and learn.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Records in a step; 2 is enough, as each is seen in two views.")] = None,
    num_epochs: Annotated[int | None, typer.Option(min=1, help="At most so many passes.")] = None,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="bfloat16 on CUDA; elsewhere it is said and ignored.")] = False,
    keep_last: Annotated[int, typer.Option(min=0, help="Keep so many last states of the training beside the best.")] = 0,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Fit one row as train_records does. What differs from params.yaml goes to .assay/one_off, and models/ stays as it is."""
    from stages import train_records
    from stages.fusion.one_off import OneOff

    run = run_of(dataset, model)
    debug = debug or bool(os.environ.get(errors.DEBUG))  # the command takes --debug for itself before it comes here
    asked = OneOff(model, quick_test, debug, batch_size, num_epochs, mixed_precision, keep_last, seed)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        code = train_records.main(run, asked)
    if as_json:
        typer.echo(as_text({"run": run, "model": model, "root": asked.root, "exit_code": code}))
    elif not code:
        typer.echo(f"next: assay weld evaluate --dataset {dataset} --model {model}{' --one-off' if asked.differs else ''}")
    raise typer.Exit(code)


@app.command()
def evaluate(
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    one_off: Annotated[bool, typer.Option("--one-off", help="What `assay weld train` fitted with other settings, not what is in models/.")] = False,
    split: Annotated[str, typer.Option(help="What is judged: train, val or test.")] = "test",
    neighbours: Annotated[int, typer.Option(min=1, help="Of the vote over the features of the training records.")] = 5,
    by_distance: Annotated[bool, typer.Option("--by-distance", help="Nearer neighbours weigh more; a record that is its own neighbour decides alone.")] = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Load a fitted model, and say what it and the nearest training records make of the records of a split."""
    from stages.serving import weld_evaluation

    found = weld_evaluation.evaluate(params.load(), run_of(dataset, model), model, split, neighbours, by_distance, one_off, seed)
    typer.echo(as_text(found) if as_json else weld_evaluation.render(found))


@app.command()
def study(
    dataset: Dataset = "weld",
    protocol: Annotated[str, typer.Option(help="Of P1, P2, P3 and P4, with commas between.")] = "P1,P2,P4",
    seeds: Annotated[str, typer.Option(help="Whole numbers with commas between.")] = "0,1,2",
    rows: Annotated[str, typer.Option(help="Rows of params.yaml with commas between; all of the data set by default.")] = "",
    ablate: Annotated[bool, typer.Option(help="Also change one thing at a time.")] = True,
    ablations: Annotated[str, typer.Option(help="Questions of the ablation tables with commas between; all by default.")] = "",
    every_seed: Annotated[bool, typer.Option("--every-seed", help="Of P3, P4 and the ablations too, not the first alone.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of tables and cells; metrics/DATASET/study by default.")] = None,
    document: Annotated[Path | None, typer.Option(help="Also put the tables between their markers in this document.")] = None,
    tables: Annotated[str, typer.Option(help="Which go into the document: of main, ablation, missing, tokens (these by default) and ideas.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many cells there are and how many are done; compute nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Fit and judge every row on every fold and seed, and write the tables. Killed at any time, the same command goes on."""
    from stages.serving import weld_study, weld_tables

    asked = weld_study.Asked(dataset, parted(protocol), whole_numbers(seeds), parted(rows), ablate, every_seed, questions=parted(ablations))
    folder, settings, chosen = out or Path("metrics", dataset, "study"), params.load(), parted(tables) or weld_tables.OF_RESULTS
    if dry_run:
        show(weld_study.budget(weld_study.plan(settings, asked), folder), as_json, ("protocol", "what", "cells", "done"))
        return
    if document is not None:
        weld_tables.check_document(document, chosen)  # before hours of work, not after them
    code, _ = weld_study.run(settings, asked, folder)
    if not code and document is not None:
        weld_tables.into_document(document, folder, chosen)
    if not code:
        text = {name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in weld_tables.FILES}
        typer.echo(as_text({"folder": folder}) if as_json else f"{text['main']}\ntables: {folder}")
    raise typer.Exit(code)


@app.command()
def labels(
    source: Annotated[str, typer.Argument(help="A data set of params.yaml that has been prepared, or a folder in the layout of the welding release.")] = "weld",
    as_json: Json = False,
) -> None:
    """How many welds and sessions each class has in each list, and what is wrong with that. Exit code 1 where models cannot be trained on it."""
    from stages.datasets import weld_labels

    if not (folder := Path(source)).is_dir():
        params.load().record_task.entry("datasets", source)
    found = weld_labels.of_folder(folder) if folder.is_dir() else weld_labels.of_prepared(source)
    typer.echo(as_text(found.as_json()) if as_json else weld_labels.render(found))
    raise typer.Exit(errors.OK if found.ok else errors.MENDABLE)


@app.command("loss-check")
def loss_check(dataset: Dataset = "weld", as_json: Json = False) -> None:
    """Hold the loss against its formula and count what the sampler draws, on the training records. Exit code 1 where something does not hold."""
    from stages.serving import weld_loss_check

    found = weld_loss_check.checked(dataset)
    typer.echo(as_text(found) if as_json else weld_loss_check.render(found))
    raise typer.Exit(errors.OK if all(one["holds"] for one in found["checks"]) else errors.MENDABLE)


@app.command()
def export(
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder; outputs/export/DATASET/MODEL by default.")] = None,
    formats: Annotated[str, typer.Option(help="Of onnx, int8 and pt2, with commas between.")] = "onnx,int8",
    allow_flips: Annotated[bool, typer.Option("--allow-flips", help="Keep a file whose verdicts differ from the model's.")] = False,
    dynamo: Annotated[bool, typer.Option("--dynamo", help="The newer exporter of torch, which needs onnxscript.")] = False,
    prune_heads: Annotated[float, typer.Option(help="Take this share of the heads of attention out, those worth least on training records.")] = 0.0,
    prune_study: Annotated[bool, typer.Option("--prune-study", help="Only say what 0, .25, .5 and .75 would cost; --out: pruning.json there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a fitted model as files that run without torch, each held against it on validation records; exit code 1 where one does not judge as it does."""
    from stages.serving import export_pruned, export_records
    from stages.serving.record_model import choose

    settings = params.load()
    chosen = choose(settings, dataset=dataset, model=model)
    if prune_study:
        studied = export_pruned.study(settings, chosen, export_records.loaded(settings, chosen))
        if out is not None:
            io.write_json(out / "pruning.json", studied)
        typer.echo(as_text(studied) if as_json else export_pruned.render(studied))
        return
    found = export_records.export(settings, chosen, out, parted(formats), allow_flips, "dynamo" if dynamo else "tracing", prune_heads)
    typer.echo(as_text(found) if as_json else export_records.render(found))


@app.command()
def explain(
    record: Annotated[str | None, typer.Argument(help="The id of a record of the split.")] = None,
    worst: Annotated[int | None, typer.Option(min=1, help="Instead of one record those that are furthest on the wrong side of the threshold.")] = None,
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    split: Annotated[str, typer.Option(help="Where the record is: train, val or test.")] = "test",
    by: Annotated[str, typer.Option(help="gradients, occlusion (for a score without a gradient) or rollout (for what attends).")] = "gradients",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The JSON file; outputs/explain/DATASET/MODEL.json by default.")] = None,
    as_json: Json = False,
) -> None:
    """Why single records have their score: what each modality adds, in which stretch, and how true that is to the model."""
    from stages.serving import weld_explain
    from stages.serving.record_model import choose

    chosen = choose(params.load(), dataset=dataset, model=model)
    found = weld_explain.explain(chosen, record, worst, split, by)
    place = out or Path("outputs/explain", chosen.dataset, f"{chosen.name}.json")
    weld_explain.write(found, place)
    typer.echo(as_text(found) if as_json else f"{weld_explain.render(found)}\nwritten to {place.as_posix()}")


@app.command()
def uncertainty(
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    passes: Annotated[int, typer.Option(min=1, help="With dropout on.")] = 20,
    coverage: Annotated[float, typer.Option(min=0.01, max=0.999, help="The share of true classes that sets of classes shall hold.")] = 0.9,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder; outputs/uncertainty/DATASET/MODEL by default.")] = None,
    as_json: Json = False,
) -> None:
    """What class probabilities are worth on test: as they are, calibrated on validation, with dropout on, and of all seeds together."""
    from stages.serving import weld_uncertainty
    from stages.serving.record_model import choose

    chosen = choose(params.load(), dataset=dataset, model=model)
    found = weld_uncertainty.measure(chosen, passes, coverage)
    place = out or Path("outputs/uncertainty", chosen.dataset, chosen.name)
    weld_uncertainty.write(found, place)
    typer.echo(as_text(found) if as_json else f"{weld_uncertainty.render(found)}\nwritten to {place.as_posix()}/: uncertainty.json, records.csv")


@app.command()
def threshold(
    model: Model = "cross-attention",
    dataset: Dataset = "weld",
    max_fnr: Annotated[float | None, typer.Option("--max-fnr", help="At most this share of faults is missed.")] = None,
    max_fpr: Annotated[float | None, typer.Option("--max-fpr", help="At most this share of good parts alarms.")] = None,
    cost_miss: Annotated[float | None, typer.Option("--cost-miss", help="Of one missed fault; with --cost-alarm and --prevalence.")] = None,
    cost_alarm: Annotated[float | None, typer.Option("--cost-alarm", help="Of one false alarm, in the same currency.")] = None,
    prevalence: Annotated[float | None, typer.Option(help="The share of bad parts in the plant.")] = None,
    per_shift: Annotated[int | None, typer.Option("--per-shift", min=1, help="Say what a shift of so many parts sees; with --prevalence.")] = None,
    as_json: Json = False,
) -> None:
    """A threshold by what the plant can bear, from validation scores, and what a shift will see of it. Nothing is changed: give it to `assay predict`."""
    from stages.serving import weld_threshold
    from stages.serving.record_model import choose

    rule = weld_threshold.Rule(max_fnr, max_fpr, cost_miss, cost_alarm, prevalence, per_shift)
    found = weld_threshold.choose_threshold(choose(params.load(), dataset=dataset, model=model), rule)
    typer.echo(as_text(found) if as_json else weld_threshold.render(found))


@app.command()
def finetune(
    dataset: Dataset = "weld",
    adapt: Annotated[str, typer.Option(help="Of frozen, lora and last (layers), with commas between: what learns of the encoders.")] = "frozen,lora,last",
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters of lora.")] = 8,
    last: Annotated[int, typer.Option(min=1, max=3, help="Layers of each encoder that learn under `last`.")] = 1,
    video: Annotated[str, typer.Option(help="A folder in backbones/, or twin.")] = "twin",
    image: Annotated[str, typer.Option(help="Likewise.")] = "twin",
    audio: Annotated[str, typer.Option(help="Likewise.")] = "twin",
    model: Annotated[str, typer.Option(help="A row of params.yaml, deep.cross_attention, whose sizes and learning are taken.")] = "cross-attention",
    film_size: Annotated[int | None, typer.Option(min=16, help="Pixels a side; 64 for the twin, else 256.")] = None,
    photo_size: Annotated[int | None, typer.Option(min=16, help="Pixels a side; 96 for the twin, else 224.")] = None,
    num_epochs: Annotated[int | None, typer.Option(min=1, help="At most so many passes.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Welds in a step.")] = None,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="bfloat16 on CUDA; elsewhere it is said and ignored.")] = False,
    quick_test: Annotated[bool, typer.Option("--quick-test", help="Two welds a class, a few steps: does it run at all?")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder; outputs/finetune/DATASET by default.")] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Train the weld model from raw media, once for each way to adapt its encoders, and compare. Killed at any time, the same command goes on."""
    from stages.serving import weld_finetune

    sizes = weld_finetune.Sizes(film_size, photo_size, rank, last)
    backbones = {"video": video, "image": image, "audio": audio}
    asked = weld_finetune.Asked(dataset, model, parted(adapt), backbones, sizes, num_epochs, batch_size, mixed_precision, seed, quick_test, out)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        found = weld_finetune.finetune(params.load(), asked)
    typer.echo(as_text(found) if as_json else weld_finetune.render(found))


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="The folder of one variant that `assay weld finetune` wrote.")],
    directory: Annotated[Path | None, typer.Argument(help="Welds in the layout of the release: manifest.csv and its sessions.")] = None,
    split: Annotated[str | None, typer.Option(help="Instead of a folder train, val or test of the data set that was learnt from.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV, or JSON where the name ends so; outputs/score/MODEL.csv by default.")] = None,
    grad_cam: Annotated[Path | None, typer.Option("--grad-cam", help="A folder for pictures of where it looked in the worst.")] = None,
    worst: Annotated[int, typer.Option(min=1, help="How many of the highest scores are drawn.")] = 3,
    as_json: Json = False,
) -> None:
    """Score welds from their raw media by a fine-tuned model, with a verdict by its threshold."""
    from stages.serving import weld_looked_at, weld_score

    settings = params.load() if params.PATH.is_file() else None
    backbones, device = (settings.backbones_folder, settings.compute.device) if settings else (Path("backbones"), "auto")
    found = weld_score.score(model, directory, split, backbones, device)
    path = out or Path("outputs/score", f"{model.name}.csv")
    weld_score.write(found, path)
    pictures = weld_looked_at.draw(found, grad_cam, worst) if grad_cam else []
    if as_json:
        typer.echo(as_text({"file": path, "pictures": pictures, "welds": found.rows}))
        return
    typer.echo(weld_score.render(found, path))
    if grad_cam:
        typer.echo(f"{len(pictures)} pictures of where it looked: {grad_cam.as_posix()}")


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="A folder in the layout of the welding release: manifest.csv and its sessions.")],
    as_json: Json = False,
) -> None:
    """As `assay data check DIR --records` does: what the folder holds and what is wrong with it. Exit code 1 where it cannot be used."""
    from stages.serving import record_check

    found = record_check.examine(directory, "intel_welding")
    typer.echo(as_text(found.as_json()) if as_json else record_check.render(found))
    raise typer.Exit(errors.OK if found.ok else errors.MENDABLE)


def parted(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def whole_numbers(text: str) -> tuple[int, ...]:
    if not parted(text) or not all(part.isdecimal() for part in parted(text)):
        raise errors.UserError(f"--seeds must be whole numbers with commas between, such as 0,1,2; got {text!r}")
    return tuple(dict.fromkeys(map(int, parted(text))))


def run_of(dataset: str, model: str) -> str:
    """The run of a data set that has this row. Raises ParamsError."""
    task = params.load().record_task
    task.entry("datasets", dataset)
    rows = {row: name for name, run in task.runs.items() if run.dataset == dataset for row in task.rows(run.model)}
    if model not in rows:
        raise params.ParamsError(f"no run of params.yaml fits {model!r} on {dataset}{params.nearest(model, list(rows))}")
    return rows[model]


