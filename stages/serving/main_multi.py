"""`assay main-multi`, also `python -m stages.serving.main_multi`: training and judging on a list of `.pt` files, with flags that the field knows.

    assay main-multi --root DIR --pattern "**/*.pt" --make_json True --total_json multiall.json --batch_size 8 --lr 3e-4 --epochs 50 --thr 0.5 \\
        --ckpt_dir checkpoints --log_json train_multi.json --train True
    assay main-multi --test_json multiall_test.json --ckpt_load checkpoints/epoch_034.pt --train False

Checkpoints are safetensors: of `epoch_034.pt` the file `epoch_034.safetensors` beside it is meant. Pickles of other programs are refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stages import errors
from stages.serving.terminal import as_text


def main_multi(
    root: Annotated[Path | None, typer.Option("--root", help="Folder that is searched for files.")] = None,
    pattern: Annotated[str, typer.Option("--pattern", help="Which files of it.")] = "**/*.pt",
    make_json: Annotated[str, typer.Option("--make_json", metavar="True|False", help="Write --total_json from --root and --pattern.")] = "False",
    total_json: Annotated[Path, typer.Option("--total_json", help="The list of files to train on.")] = Path("multiall.json"),
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 8,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate, above 0.")] = 3e-4,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 50,
    thr: Annotated[float, typer.Option("--thr", min=0, max=1, help="Probability above which a record is called anomalous.")] = 0.5,
    ckpt_dir: Annotated[Path, typer.Option("--ckpt_dir", help="Folder of the checkpoints, one for each epoch.")] = Path("checkpoints"),
    ckpt_load: Annotated[Path | None, typer.Option("--ckpt_load", help="The checkpoint to judge.")] = None,
    log_json: Annotated[Path | None, typer.Option("--log_json", help="train_multi.json or test_multi.json by default.")] = None,
    test_json: Annotated[Path | None, typer.Option("--test_json", help="The list of files to judge on.")] = None,
    train: Annotated[str, typer.Option("--train", metavar="True|False", help="False: judge --ckpt_load on --test_json, with labels or without.")] = "True",
    seed: Annotated[int, typer.Option("--seed", help="Of the split and of the network.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    model: Annotated[str, typer.Option("--model", help="A detector of records that trains in epochs.")] = "perceiver_moe",
    options: Annotated[str, typer.Option("--options", help='Its further options as JSON, e.g. \'{"width": 64}\'.')] = "{}",
    group: Annotated[str, typer.Option("--group", help="What must not be split where files do not say: auto, file, folder, id.")] = "auto",
    as_tokens: Annotated[bool, typer.Option("--as-tokens", help="Read video_tokens (T, K, D) as T * K tokens of width D.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Train on files of embeddings, any modality of which may be missing, or judge a checkpoint. Killed at any time, the same command goes on."""
    from stages.serving import record_trial
    from stages.serving.records import grouping

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    if not lr > 0:
        raise errors.UserError(f"--lr must be above 0, got {lr:g}")
    record_trial.require_device(device)
    if not truth(train, "--train"):
        if test_json is None or ckpt_load is None:
            raise errors.UserError("--train False needs --test_json, the list to judge on, and --ckpt_load, a checkpoint such as checkpoints/epoch_034.pt")
        judged = record_trial.judge(test_json, ckpt_load, thr, log_json or Path("test_multi.json"), device, say)
        typer.echo(as_text(judged) if as_json else record_trial.render(judged))
        return
    asked = record_trial.schedule(model, {"learning_rate": lr, "epochs": epochs, "batch_size": batch_size}, say)
    plan = record_trial.Plan(model, {**asked, **_options(options)}, thr, seed, device, grouping(group), as_tokens)
    record_trial.built(plan)  # what is wrong with it is said before files are read
    if truth(make_json, "--make_json"):
        _make_list(root, pattern, total_json, say)
    done = record_trial.train(total_json, plan, ckpt_dir, log_json or Path("train_multi.json"), say)
    typer.echo(as_text(done) if as_json else record_trial.render(done["test"]))


def truth(word: str, flag: str) -> bool:
    """True or False from the words."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in known:
        raise errors.UserError(f"{flag} takes True or False, got {word!r}")
    return known[word.lower()]


def _make_list(root: Path | None, pattern: str, total_json: Path, say: Any) -> None:
    from stages.datasets.record_lists import scanned, write_list

    if root is None:
        raise errors.UserError("--make_json True needs --root, the folder that holds the .pt files")
    found = scanned(root, pattern)
    write_list(total_json, found)
    say(f"{total_json}: {len(found.items)} files of {root}")


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise errors.UserError(f"--options is no JSON ({error}); for instance '{{\"width\": 64}}'") from None
    if not isinstance(found, dict):
        raise errors.UserError(f"--options must be a JSON object such as '{{\"width\": 64}}', got {text}")
    return found


def main() -> None:
    """Entry point of `python -m stages.serving.main_multi`: the same as `assay main-multi`."""
    from stages.serving import cli

    sys.argv[:1] = ["assay", "main-multi"]
    cli.main()


if __name__ == "__main__":
    main()
