"""`assay extract --as-records`: raw media to one `.pt` of embeddings a record, in the schemas that other programs of the field read.

Takes a folder or a table of media, a data set of pairs (`--adapter mimic_cxr`, `spot_the_diff`), or one that `prepare_records` has prepared. The
files go to `assay main-multi --root OUT` or `assay records pack OUT`; `manifest.json` beside them lists every file with label, group and split.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from stages import io, params
from stages.datasets.record_adapters import STORED
from stages.serving.terminal import as_text

if TYPE_CHECKING:
    from stages.datasets.records import Record, Tokens
    from stages.encoders.media.encoder import Place, TokenEncoder
    from stages.encoders.media.extraction import File

LIST = "manifest.json"
MEDIA = "media"  # in the folder: what an archive or a data set of pairs is unpacked to


class Written(NamedTuple):
    folder: str
    schema: str
    records: int
    encoders: dict[str, str]  # modality -> kind
    unreadable: list[dict[str, str]]
    list: str


def extract(
    source: Annotated[str, typer.Argument(help="A folder or CSV of raw media, or the name of a prepared data set of records.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the .pt files.")],
    as_records: Annotated[bool, typer.Option("--as-records", help="Write one .pt for each record.")] = False,
    schema: Annotated[str, typer.Option(help="general, or what other programs read: audio-video, series, image-text.")] = "general",
    adapter: Annotated[str, typer.Option(help="The layout of the source: media_folder, mimic_cxr, spot_the_diff.")] = "media_folder",
    encoder: Annotated[
        list[str] | None, typer.Option(help="MODALITY=NAME: an entry of records.encoders in params.yaml, or a kind. May be given again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Turn raw media into files of embeddings. Features of the pipeline are made by `dvc repro`, in its stages `extract` and `extract_records`."""
    if not as_records:
        raise params.ParamsError(
            "say --as-records; features of the pipeline are made by `dvc repro`, in its stages `extract` and `extract_records`"
        )
    chosen = dict(_pair(text) for text in encoder or ())
    written = write(source, out, schema, adapter, chosen)
    if as_json:
        typer.echo(as_text(written._asdict()))
        return
    for one in written.unreadable:
        typer.echo(f"  left out: {one['reason']}", err=True)
    used = ", ".join(f"{modality} by {kind}" for modality, kind in written.encoders.items())
    typer.echo(f"{written.folder}: {written.records} files, schema {schema}; {used}\nnext:\n  assay records check {written.folder}")


def write(source: str, out: Path, schema: str = "general", adapter: str = "media_folder", chosen: dict[str, str] | None = None) -> Written:
    """chosen: modality -> encoder, where it is not the default. Raises RecordError (E330) where `out` holds files, ParamsError, DataError."""
    from stages.datasets.record_errors import RecordError
    from stages.datasets.record_files import SCHEMAS, write_record
    from stages.datasets.record_packing import file_names
    from stages.progress import progress

    if schema not in SCHEMAS:
        raise params.ParamsError(f"there is no schema {schema!r}{params.nearest(schema, SCHEMAS)}")
    if out.exists() and any(path.name != MEDIA for path in out.iterdir()):  # an earlier try may have left media
        raise RecordError("E330", out, "", "is not empty", "Give a folder that is new")
    rows, root = _rows(source, out, adapter)
    files = _files(rows, root)
    settings = params.load() if params.PATH.is_file() else None
    encoders = {modality: _encoder(modality, some, chosen or {}, source, settings) for modality, some in files.items()}
    if unused := sorted(set(chosen or ()) - set(encoders)):
        raise params.ParamsError(f"--encoder: the records have no modality {unused[0]!r}{params.nearest(unused[0], encoders)}")
    encoders = {modality: one for modality, one in encoders.items() if schema == "general" or one.reads in _kept(schema)}
    if not encoders:
        raise params.ParamsError(
            f"the schema {schema} holds {', '.join(_kept(schema))}; the records have {', '.join(files)}. Take another schema"
        )
    bad: list[dict[str, str]] = []
    items = []
    names = dict(zip([row["record_id"] for row in rows], file_names([row["record_id"] for row in rows]), strict=True))
    with progress("extracting", len(rows)) as advance:
        for record in _records(rows, files, encoders, schema, bad):
            if record.modalities:
                write_record(out / names[record.record_id], record, schema)
                items.append(_item(names[record.record_id], record))
            advance(1)
    io.write_json(out / LIST, {"version": 1, "root": ".", "items": items})
    kinds = {modality: one.identity["entry"]["kind"] for modality, one in encoders.items()}
    return Written(out.as_posix(), schema, len(items), kinds, bad, (out / LIST).as_posix())


def _rows(source: str, out: Path, adapter: str) -> tuple[list[dict[str, Any]], Path]:
    """As samples.parquet has them, and what their paths are relative to."""
    from stages.datasets import record_adapters
    from stages.datasets.record_checks import check
    from stages.datasets.samples import root_of

    table = Path("data", source, "samples.parquet")
    if table.is_file() and not Path(source).exists():
        rows = io.read_table(table)
        if not rows or "record_id" not in rows[0]:
            raise params.ParamsError(f"{source} is a data set of images or signals, not of records. `dvc repro extract` makes their features")
        return rows, root_of(table.with_name("dataset.json"))
    reading = record_adapters.read(adapter, Path(source), out / MEDIA, {})
    checked = check(reading)
    for problem in checked.problems:
        print(f"{problem.severity} {problem.code}: {problem.what}. {problem.fix}", file=sys.stderr)
    plain = ("record_id", "label", "fault", "group", "split")
    rows = [
        {name: getattr(row, name) for name in plain} | {f"{one}_path": row.paths.get(one) for one in reading.modalities}
        for row in checked.rows
    ]
    return rows, reading.root


def _files(rows: list[dict[str, Any]], root: Path) -> dict[str, list[File]]:
    from stages.encoders.media.extraction import listed

    modalities = [name.removesuffix("_path") for name in rows[0] if name.endswith("_path")]
    if STORED in modalities:
        raise params.ParamsError("these records are embeddings already: `assay records pack` and `unpack` turn them into what is wanted")
    return {modality: listed(rows, root, modality) for modality in modalities if any(row[f"{modality}_path"] for row in rows)}


def _encoder(modality: str, files: list[File], chosen: dict[str, str], source: str, settings: params.Params | None) -> TokenEncoder:
    """What was asked for, else what the data set's own entry says, else the default of the kind of media."""
    from stages.datasets.media import kind_of
    from stages.encoders import media

    entries = settings.records.encoders if settings and settings.records else {}
    jobs = settings.records.extracts.values() if settings and settings.records else ()
    own = next((job.encoder for job in jobs if (job.dataset, job.modality) == (source, modality)), None)
    name = chosen.get(modality) or own
    if name in entries:
        return media.build(name, entries[name].kind, entries[name].options, _place(settings), ("records", "encoders", name))
    options = dict(media.DEFAULTS.get(modality) or media.DEFAULTS.get(kind_of(files[0].path) or "", {"kind": ""}))
    kind = options.pop("kind")
    if name:
        kind, options = name, options if name == kind else {}
    if kind not in media.known():
        known = ", ".join([*entries, *media.known()])
        raise params.ParamsError(f"--encoder: {modality} has no encoder {kind!r}. Say --encoder {modality}=NAME with one of {known}")
    return media.build(modality, kind, options, _place(settings), ("--encoder",))


def _place(settings: params.Params | None) -> Place:
    from stages.encoders.encoder import resolve_device
    from stages.encoders.media.encoder import Place

    if settings is None:
        return Place(resolve_device("auto"), 1, Path("backbones"))
    return Place(resolve_device(settings.compute.device), settings.compute.threads, settings.backbones_folder)


def _records(
    rows: list[dict[str, Any]], files: dict[str, list[File]], encoders: dict[str, TokenEncoder], schema: str, bad: list[dict[str, str]]
) -> Iterator[Record]:
    """Every record in order with the tokens of the modalities that it has; of what could not be read `bad` is told."""
    from stages.datasets.records import Record
    from stages.datasets.samples import DataError
    from stages.encoders.media.extraction import encoded

    streams = {modality: encoded(modality, one, files[modality], 1) for modality, one in encoders.items()}
    for row in rows:
        found: dict[str, list[Tokens]] = {}
        for modality, stream in streams.items():
            if row[f"{modality}_path"]:
                file, tokens = next(stream)
                if isinstance(tokens, DataError):
                    bad.append({"record_id": row["record_id"], "path": file.shown, "reason": str(tokens)})
                else:
                    found.setdefault(modality if schema == "general" else encoders[modality].reads, []).append(tokens)
        joined = {name: _joined(name, parts) for name, parts in found.items()}
        yield Record(row["record_id"], joined, row["label"], row["group"] or "", row["fault"] or "", row["split"])


def _joined(name: str, parts: list[Tokens]) -> Tokens:
    """Two pictures of one record are two tokens of one key, in the order of the table's columns."""
    import torch

    if len({part.values.shape[1] for part in parts}) > 1:
        raise params.ParamsError(f"{name} comes from two encoders of different widths; choose the same for both, or the schema general")
    return type(parts[0])(torch.cat([part.values for part in parts]), torch.cat([part.time for part in parts]))


def _kept(schema: str) -> list[str]:
    from stages.datasets.record_packing import schema_modalities

    return schema_modalities(schema)


def _item(name: str, record: Record) -> dict[str, Any]:
    """A line of the list; what is not known is left out."""
    told = {"id": record.record_id, "label": record.label, "group": record.group, "fault": record.fault, "split": record.split}
    return {"path": name} | {key: value for key, value in told.items() if value not in (None, "", -1)}


def _pair(text: str) -> tuple[str, str]:
    modality, mark, name = text.partition("=")
    if not mark or not modality or not name:
        raise params.ParamsError(f"--encoder takes MODALITY=NAME, e.g. audio=yamnet; got {text!r}")
    return modality, name
