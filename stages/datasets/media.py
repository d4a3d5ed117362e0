"""The only place that opens raw media of records: a picture, a film, a sound, a signal or a note becomes an array or a clear refusal.

Files are what strangers sent: what a file declares is checked before anything is decoded, what it decodes to is counted while it grows, and a
container that could name other files or addresses (a playlist) is none of those that are read. Pictures are read by stages/datasets/images.py,
signals by stages/datasets/signal_file.py, whose rules hold here too.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets import images, signal_file
from stages.datasets.samples import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

SUFFIXES = {
    "image": tuple(sorted(images.SUFFIXES)),
    "video": (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"),
    "audio": (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav"),
    "series": (".csv", ".parquet", ".tsv"),
    "text": (".md", ".txt"),
}
CONTAINERS = "aac,aiff,avi,flac,matroska,webm,mov,mp4,m4a,mp3,mpeg,mpegts,ogg,wav,w64"  # no playlists: those name other files and addresses
MAX_FILM_FRAMES = 200_000  # two hours at 25 a second
MAX_CLIP_BYTES = 2**29  # of the frames that are kept
MAX_SOUND_S = 3600
MAX_TEXT_BYTES = 2**20
MAX_SERIES_BYTES = 2**28
WHOLE = 0.9  # a film that gives less than this share of the frames it declares is cut off


class Clip(NamedTuple):
    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB, upright; (T, H, W) where it is read in grey
    time_s: NDArray[np.float64]  # (T,) from the beginning of the film


class Sound(NamedTuple):
    samples: NDArray[np.float32]  # (n,) the mean of all channels, about -1..1
    rate: int  # samples a second


class Header(NamedTuple):
    """What a file of sound or film says of itself."""

    rate: float  # samples or frames a second
    seconds: float | None  # None where it does not say


class Signal(NamedTuple):
    values: NDArray[np.float32]  # (T, V), NaN where a cell is empty
    time_s: NDArray[np.float64]  # (T,) seconds, or the number of the step where the file has no column of time
    variables: tuple[str, ...]


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, upright. Raises DataError (E430, E431)."""
    _require(path)
    try:
        return images.read_image(path)
    except images.UnreadableImage as error:
        raise _refused("E431", path, "a picture", error.cause, "Replace it with a PNG, JPEG, TIFF, BMP, PPM or WEBP file") from error


def read_pictures(path: Path, most: int | None = None) -> list[NDArray[np.uint8]]:
    """One picture, or those of a folder in order of their names, `most` of them at most. Raises DataError (E430, E431)."""
    if not path.is_dir():
        return [read_image(path)]
    found = sorted(one for one in path.iterdir() if images.is_image_name(one) and one.is_file())[:most]
    if not found:
        raise DataError(f"E430 {path} holds no picture. Put PNG or JPEG files there, or leave that cell of the table blank")
    return [read_image(one) for one in found]


def read_video(path: Path, frames: int | None = None) -> Clip:
    """`frames` frames at equal distances, the first and the last of the film among them; all of them for None, or where it has fewer.

    Decoded once where the container says truly how many frames it has, so that memory is bounded by the frames that are kept. Raises DataError
    (E430, E432).
    """
    declared = _frames_of(path)
    decoded = _decoded(path, frames, declared)
    if decoded.count < WHOLE * declared or not decoded.count:
        cause = f"it declares {declared} frames and {decoded.count} of them can be decoded"
        raise _refused("E432", path, "a film", cause, "Copy it again from where it was made, or export it as MP4")
    if decoded.count != declared:
        decoded = _decoded(path, frames, decoded.count)
    return Clip(np.stack(decoded.frames), np.asarray(decoded.time_s))


def read_grey_film(path: Path, side: int) -> Clip:
    """Every frame in grey, scaled whole to a square by averaging: frames (T, side, side). Decoded once. Raises DataError (E430, E432)."""
    declared = _frames_of(path)
    frames, times = [], []
    with _opened(path, "E432", "a film", "video") as (container, stream):
        for frame in container.decode(stream):
            _refuse_large(path, frame.width, frame.height)
            small = frame.reformat(side, side, "gray", interpolation="AREA").to_ndarray()
            frames.append(np.ascontiguousarray(np.rot90(small, frame.rotation // 90)))
            times.append(float(frame.time or 0) - float((stream.start_time or 0) * (stream.time_base or 0)))
            if len(frames) > MAX_FILM_FRAMES or len(frames) * side * side > MAX_CLIP_BYTES:
                raise _refused("E432", path, "a film", f"it holds more than {len(frames) - 1} frames", "Cut it into records")
    if len(frames) < WHOLE * declared or not frames:
        cause = f"it declares {declared} frames and {len(frames)} of them can be decoded"
        raise _refused("E432", path, "a film", cause, "Copy it again from where it was made, or export it as MP4")
    return Clip(np.stack(frames), np.asarray(times))


def read_header(path: Path, kind: str) -> Header:
    """kind: audio or video. Nothing is decoded. Raises DataError (E430, E432, E433)."""
    code, what = ("E433", "a sound") if kind == "audio" else ("E432", "a film")
    with _opened(path, code, what, kind) as (container, stream):
        rate = float(stream.rate if kind == "audio" else stream.average_rate or 0)
        if kind == "video" and stream.frames and rate:
            return Header(rate, stream.frames / rate)
        own = stream.duration and stream.time_base and float(stream.duration * stream.time_base)
        return Header(rate, own or (container.duration / 1e6 if container.duration else None))


def read_audio(path: Path, rate: int) -> Sound:
    """The whole sound at `rate` samples a second. Raises DataError (E430, E433)."""
    import av

    parts, length = [], 0
    with _opened(path, "E433", "a sound", "audio") as (container, stream):
        resampler = av.AudioResampler(format="fltp", rate=rate)  # channels stay as they are: FFmpeg's own mix to one depends on the format
        for frame in itertools.chain(container.decode(stream), [None]):  # at None the resampler gives out what it holds
            for part in resampler.resample(frame):
                parts.append(part.to_ndarray().mean(0, dtype=np.float32))
                length += len(parts[-1])
            if length > MAX_SOUND_S * rate:
                raise _refused("E433", path, "a sound", f"it is longer than {MAX_SOUND_S} s", "Cut it into records")
    if not length:
        raise _refused("E433", path, "a sound", "it holds no samples", "Export it again as WAV or FLAC")
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise _refused("E433", path, "a sound", "some samples are NaN or infinite", "Export it again as 16-bit WAV or FLAC")
    return Sound(samples, rate)


def read_series(path: Path) -> Signal:
    """A CSV or parquet file of signals; a column of labels is left out. Raises DataError (E430, E434, and those of signal_file)."""
    _require(path)
    if path.stat().st_size > MAX_SERIES_BYTES:
        raise _refused("E434", path, "a signal", f"it has more than {MAX_SERIES_BYTES >> 20} MiB", "Cut it into records")
    columns = signal_file.read_columns(path)
    time_s = np.arange(len(columns.values), dtype=np.float64) if columns.time_s is None else columns.time_s
    return Signal(columns.values, time_s, columns.variables)


def read_text(path: Path) -> str:
    """A note in UTF-8, or in UTF-16 with a byte-order mark, without blank ends. Raises DataError (E430, E435)."""
    _require(path)
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise _refused(
            "E435", path, "a note", f"it has {size} bytes, at most {MAX_TEXT_BYTES} are read", "Cut it to what belongs to the record"
        )
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _refused("E435", path, "a note", str(error), "Save it as UTF-8") from error
    if not text or "\0" in text:
        raise _refused("E435", path, "a note", "it holds zero bytes" if text else "it is blank", "Save it as UTF-8, or take it away")
    return text


READERS: dict[str, Callable[..., Any]] = {
    "image": read_image,
    "video": read_video,
    "audio": read_audio,
    "series": read_series,
    "text": read_text,
}


def kind_of(path: Path) -> str | None:
    """Which of the five a file is, told from the ending of its name; None for any other, and for hidden files."""
    if path.name.startswith("."):
        return None
    return next((kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)


@contextlib.contextmanager
def _opened(path: Path, code: str, what: str, kind: str) -> Iterator[tuple[InputContainer, Stream]]:
    """The container and its first stream of a kind; whatever FFmpeg finds wrong within the block is a DataError."""
    import av

    _require(path)
    fix = f"Export it again as {'MP4' if kind == 'video' else 'WAV or FLAC'}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
            stream = next((stream for stream in container.streams if stream.type == kind), None)
            if stream is None:
                raise _refused(code, path, what, f"it has no stream of {kind}", fix)
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # threads of our own read several files at once
            yield container, stream
    except DataError:
        raise
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise _refused(code, path, what, getattr(error, "strerror", None) or str(error) or type(error).__name__, fix) from error


class _Decoded(NamedTuple):
    frames: list[NDArray[np.uint8]]  # those that are kept
    time_s: list[float]
    count: int  # of all


def _frames_of(path: Path) -> int:
    """As many as the container declares; where it declares none, as many packets as it has."""
    with _opened(path, "E432", "a film", "video") as (container, stream):
        _refuse_large(path, stream.codec_context.width, stream.codec_context.height)
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


def _decoded(path: Path, frames: int | None, count: int) -> _Decoded:
    """Every frame is decoded; of `count` of them `frames` are kept, or all."""
    wanted = None if frames is None else set(np.linspace(0, max(count - 1, 0), frames).round().astype(int).tolist())
    kept, times, place = [], [], -1
    with _opened(path, "E432", "a film", "video") as (container, stream):
        for place, frame in enumerate(container.decode(stream)):
            _refuse_large(path, frame.width, frame.height)
            if place >= MAX_FILM_FRAMES:
                raise _refused("E432", path, "a film", f"it holds more than {MAX_FILM_FRAMES} frames", "Cut it into records")
            if wanted is None or place in wanted:
                kept.append(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)))
                times.append(float(frame.time or 0) - float((stream.start_time or 0) * (stream.time_base or 0)))
            if kept and len(kept) * kept[-1].nbytes > MAX_CLIP_BYTES:
                cause = f"{len(kept)} frames of {frame.width} x {frame.height} pixels are more than {MAX_CLIP_BYTES >> 20} MiB"
                raise _refused("E432", path, "a film", cause, "Ask for fewer frames, or scale it down")
    return _Decoded(kept, times, place + 1)


def _refuse_large(path: Path, width: int, height: int) -> None:
    if width * height > images.MAX_PIXELS:
        cause = f"{width} x {height} pixels a frame, more than the {images.MAX_PIXELS} allowed"
        raise _refused("E432", path, "a film", cause, "Scale it down")


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"E430 {path} is not here, but the sample table names it. Put it there, or run `dvc repro pipelines/records/dvc.yaml:prepare_records`")
    if not path.stat().st_size:
        raise DataError(f"E430 {path} is empty (0 bytes). Copy it again from where it was made, or leave that cell of the table blank")


def _refused(code: str, path: Path, what: str, cause: str, fix: str) -> DataError:
    return DataError(f"{code} {path} cannot be read as {what}: {cause.splitlines()[0]}. {fix}")
