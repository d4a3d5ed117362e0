"""`assay records`: many small files of embeddings into one store and back, and what is in either."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages import errors
from stages.serving.terminal import as_text

if TYPE_CHECKING:
    from stages.datasets.record_inspection import Examined

SHOWN = 20

app = typer.Typer(no_args_is_help=True, help="Embeddings that lie in files of their own: pack, unpack, check.")

Source = Annotated[Path, typer.Argument(help="A folder of .pt files, or a JSON list of their paths.")]
Pattern = Annotated[str, typer.Option(help="Which files of a folder.")]
AsTokens = Annotated[bool, typer.Option("--as-tokens", help="Read video_tokens (T, K, D) as T * K tokens of width D, not T of width K * D.")]
Group = Annotated[str, typer.Option(help="What must not be split where files do not say: auto, file, folder, id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def pack(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the store.")],
    pattern: Pattern = "**/*.pt",
    as_tokens: AsTokens = False,
    group: Group = "auto",
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, which is also what is held in memory.")] = 128,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a store that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a folder or a list into a few shards, in one pass. Killed at any time, the same command goes on."""
    from stages.datasets import record_packing
    from stages.datasets.record_lists import listing

    rule, found = grouping(group), listing(source, pattern)
    packed = record_packing.pack(found, out, as_tokens=as_tokens, group=rule, shard_mb=shard_mb, replace=replace, say=_say)
    if as_json:
        typer.echo(as_text(packed._asdict() | {"rejected": [one._asdict() for one in packed.rejected]}))
        return
    widths = ", ".join(f"{name} {width}" for name, width in packed.modalities.items())
    typer.echo(f"{packed.folder}: {packed.records} records in {packed.shards} shards; {widths}; grouped by {packed.grouping}")
    for one in packed.rejected[:SHOWN]:
        typer.echo(f"  left out: {one.code} {one.path}: {one.key} {one.reason}")
    if packed.rejected:
        typer.echo(f"  {len(packed.rejected)} left out in all; {Path(packed.folder, record_packing.REJECTED)} lists them")


@app.command()
def unpack(
    store: Annotated[Path, typer.Argument(help="The folder of a store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the files.")],
    schema: Annotated[str, typer.Option(help="general, or what other programs read: audio-video, series, image-text.")] = "general",
    as_json: Json = False,
) -> None:
    """Write one .pt for each record of a store."""
    from stages.datasets import record_packing
    from stages.datasets.record_store import RecordStore

    count = record_packing.unpack(RecordStore(store), out, schema)
    typer.echo(as_text({"folder": out, "records": count, "schema": schema}) if as_json else f"{out}: {count} files, schema {schema}")


@app.command()
def check(
    source: Annotated[Path, typer.Argument(help="A folder of .pt files, a JSON list of their paths, or the folder of a store.")],
    pattern: Pattern = "**/*.pt",
    as_tokens: AsTokens = False,
    group: Group = "auto",
    as_json: Json = False,
) -> None:
    """Count what is there by modality, label and group, and name every problem. Changes nothing. Exit code 1 where training cannot go on."""
    from stages.datasets import record_inspection as inspection
    from stages.datasets.record_lists import listing
    from stages.datasets.record_store import ABOUT, RecordStore

    if (source / ABOUT).is_file():
        found = inspection.examined_store(RecordStore(source))
    else:
        found = inspection.examined(listing(source, pattern), as_tokens=as_tokens, group=grouping(group))
    typer.echo(as_text(inspection.as_json(found)) if as_json else render(found))
    raise typer.Exit(errors.OK if found.ok else errors.MENDABLE)


def render(found: Examined) -> str:
    """What `check` prints: counts first, then problems, the many of one code cut short."""
    lines = [f"{found.records} records in {found.groups} groups (by {found.grouping}, the largest of {found.largest_group})"]
    lines.append("  " + ", ".join(f"{count} {name}" for name, count in found.labels.items() if count))
    if found.splits:
        lines.append("  split: " + ", ".join(f"{count} {name}" for name, count in found.splits.items()))
    for name, one in found.modalities.items():
        lines.append(f"  {name}: {one.records} records, width {one.width}, {one.shortest} to {one.longest} tokens, median {one.median:g}")
    lines += [f"  only {name}: {count}" for name, count in found.subsets.items()] if len(found.subsets) > 1 else []
    by_code = Counter(problem.code for problem in found.problems)
    told: Counter[str] = Counter()
    for problem in found.problems:
        told[problem.code] += 1
        if told[problem.code] <= SHOWN:
            lines.append(" ".join(part for part in (problem.severity, problem.code, f"{problem.path}: {problem.what}".lstrip(": "), problem.fix) if part))
    lines += [f"{code}: {count - SHOWN} more; --json lists all" for code, count in by_code.items() if count > SHOWN]
    return "\n".join([*lines, "ready for training" if found.ok else "training cannot go on until what is called an error is mended"])


def grouping(given: str) -> str:
    from stages.datasets.record_intake import GROUPINGS

    if given not in GROUPINGS:
        raise errors.UserError(f"--group must be one of {', '.join(GROUPINGS)}, got {given!r}")
    return given


def _say(text: str) -> None:
    print(text, file=sys.stderr)
