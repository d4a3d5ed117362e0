"""Files in, a filled store of records out: threads read a few files ahead of the network, which sees one batch after another.

Only reading is done by threads, so that neither the bits nor the tokenizers, which bear one caller at a time, depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from stages.datasets.record_store import StoreWriter
from stages.datasets.records import Record, Tokens
from stages.datasets.samples import DataError
from stages.encoders.media.encoder import TokenEncoder
from stages.errors import UserError
from stages.params import ParamsError, nearest
from stages.progress import Advance

BATCH = 32  # files in one pass of the network
UNREADABLE = 0.05  # of the files; more are an error, not a quarantine


class File(NamedTuple):
    path: Path
    shown: str  # as the sample table names it
    record: Record  # without tokens


def listed(rows: Sequence[dict[str, Any]], root: Path, modality: str) -> list[File]:
    """The files of a modality, of the records that have it. rows: of the sample table. Raises ParamsError, or DataError (E436) where there is none."""
    column = f"{modality}_path"
    if rows and column not in rows[0]:
        known = [name.removesuffix("_path") for name in rows[0] if name.endswith("_path")]
        raise ParamsError(f"the records have no modality {modality!r}{nearest(modality, known)}")
    found = []
    for row in rows:
        if row[column]:
            record = Record(row["record_id"], {}, row["label"], row["group"], row["fault"], row["split"])
            found.append(File(root / row[column], row[column], record))
    if not found:
        raise DataError(f"E436 no record has a file of {modality}. Take its entry out of records.extracts, or look at the source")
    return found


def fill(
    folder: Path, modality: str, encoder: TokenEncoder, files: Sequence[File], about: dict[str, Any], threads: int, advance: Advance
) -> int:
    """Encode every file into the store `folder`, which is complete when its `records.json` stands in it. Returns how many could not be read.

    Raises what `encoded` raises.
    """
    writer = StoreWriter(folder, {modality: encoder.width} if encoder.width else None)
    bad: list[dict[str, str]] = []
    for file, tokens in encoded(modality, encoder, files, threads):
        if isinstance(tokens, DataError):
            bad.append({"record_id": file.record.record_id, "path": file.shown, "reason": str(tokens)})
        else:
            writer.add(file.record._replace(modalities={modality: tokens}))
        advance(1)
    writer.close({**about, "unreadable": bad})
    return len(bad)


def encoded(modality: str, encoder: TokenEncoder, files: Sequence[File], threads: int) -> Iterator[tuple[File, Tokens | DataError]]:
    """Every file in order with its tokens, or with the error that says why it has none.

    Raises DataError where more than 5 % of the files cannot be read (E436) or their widths differ (E437), UserError (E301) for tokens that are not finite.
    """
    width, bad = encoder.width, 0
    for batch in _chunks(_read_ahead(encoder, files, threads), BATCH):
        good = [seen for _, seen in batch if not isinstance(seen, DataError)]
        tokens = iter(encoder.encode(good) if good else ())
        for file, seen in batch:
            if isinstance(seen, DataError):
                bad += 1
                _refuse_many(modality, bad, len(files), seen)
                yield file, seen
            else:
                one = _sound(file, next(tokens), width)
                width = one.values.shape[1]
                yield file, one


def _chunks(stream: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(stream, size)):
        yield chunk


def _sound(file: File, tokens: Tokens, width: int | None) -> Tokens:
    if width and tokens.values.shape[1] != width:
        raise DataError(
            f"E437 {file.shown} gives tokens of width {tokens.values.shape[1]}, the files before it {width}: it has other variables. Give all files "
            "the same columns, or name those that count in `nominal` of the encoder"
        )
    if not tokens.values.isfinite().all():
        raise UserError(f"E301 the tokens of {file.shown} are not finite. Look at the file, and at the options of its encoder")
    return tokens


def _refuse_many(modality: str, bad: int, total: int, last: DataError) -> None:
    if bad > UNREADABLE * total and (bad > 1 or total == 1):
        raise DataError(f"E436 {bad} of {total} files of {modality} could not be read so far, more than {UNREADABLE:.0%}. The last: {last}")


def _read_ahead(encoder: TokenEncoder, files: Sequence[File], threads: int) -> Iterator[tuple[File, Any]]:
    """Every file in order with what `read` gave, or with the error that says why it gave nothing."""
    waiting: deque[tuple[File, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                waiting.append((file, pool.submit(_read, encoder, file.path)))
                if len(waiting) > BATCH + threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(encoder: TokenEncoder, path: Path) -> Any:
    try:
        return encoder.read(path)
    except DataError as error:
        return error
