"""`WeldingDataset`: one weld as four arrays of fixed shape with masks, for models that see raw media. The records task stores tokens instead.

A sample is a dict of arrays; "post_images" and "post_weld_images" are two names of the same array, and "masks" and "time" go by the names of the arrays:

    "video" (T, 1, H, W)            grey frames in 0..1, at equal moments of the clock of the arc
    "post_images" (N, 3, H, W)      photographs in 0..1, each at the place of its angle
    "audio" (1, M, F)               log-mel spectrogram, a column each 10 ms from the arc on; or (1, n) samples where `Shape.bands` is 0
    "sensors" (S, V)                sensors as (value - centre) / spread, at equal moments from the arc on
    "masks"                         (T,), (N,), (F,) and (S,) bool, True where there is a frame, view, column and step; the rest is padding
    "time"                          likewise float32 in 0..1, where on the common clock they lie
    "present" (4,) bool             video, photographs, sound, sensors
    "label"                         int, place in `classes`; "anomalous" 0 or 1; "record_id"

A medium that a weld lacks is all padding. Nothing here needs torch but what opens files (`MediaReader`) and `collate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stages.datasets.intel_welding import CLASSES, GOOD, read_layout
from stages.datasets.record_adapters import RecordRow
from stages.datasets.samples import DataError
from stages.datasets.weld_files import CURRENT, NOMINAL, plain

if TYPE_CHECKING:
    from torch import Tensor

MODALITIES = ("video", "image", "audio", "series")  # in the order of "present"
ARRAYS = {"video": "video", "image": "post_images", "audio": "audio", "series": "sensors"}
ALSO = "post_weld_images"
COLUMN_S, FRAME_S = 0.01, 0.032  # of the spectrogram
FLOOR = 1e-6  # added to a power before the logarithm
Fill = Literal["zeros", "repeat"]


class Shape(NamedTuple):
    """Of the arrays."""

    frames: int = 16  # T
    frame_size: int = 224
    views: int = 5  # N
    image_size: int = 224
    rate: int = 16000
    bands: int = 64  # M; 0 for samples
    steps: int = 256  # S
    sensors: int = 6  # V
    rate_hz: float = 8.6  # of steps
    clock_s: float = 40.0  # what time 1 is, from the arc on; video and audio are as long

    @property
    def columns(self) -> int:
        """F, or n for samples."""
        return round(self.clock_s * self.rate) if self.bands == 0 else round(self.clock_s / COLUMN_S)


DEFAULT = Shape()


class Medium(NamedTuple):
    """What there is of one medium of one weld, along its first axis, at most as many as the shape has."""

    values: NDArray[Any]
    time: NDArray[np.float64]  # in 0..1 of the common clock
    place: Sequence[int] | None = None  # of each value among those of the shape; from the first on where None


Media = Mapping[str, Medium]  # by modality; without those that are missing
Reader = Callable[[RecordRow], Media]


class WeldingDataset:
    """Welds by number, in the order of `rows`.

    read: gives of a weld "video" (t, H, W), "image" (n, H, W, 3), "audio" (f, M) or (n,), "series" (s, V), pixels uint8 or float in 0..1, all of the
    sides that `shape` says. fill: what stands at the place of a missing view: zeros, or the view before it; it is masked in either case.
    Raises DataError for a class that is none of `classes`.
    """

    def __init__(
        self, rows: Sequence[RecordRow], read: Reader, shape: Shape = DEFAULT, *, classes: Sequence[str] = CLASSES, fill: Fill = "zeros"
    ) -> None:
        self.rows, self.read, self.shape, self.classes, self.fill = list(rows), read, shape, tuple(classes), fill
        if unknown := sorted({row.fault for row in self.rows} - {"", *classes}):
            raise DataError(f"E441 the class {unknown[0]!r} is none of {', '.join(classes)}. Correct CATEGORY, or say which `classes` there are")

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        shape: Shape = DEFAULT,
        *,
        split: str | None = None,
        record_ids: Sequence[str] | None = None,
        fill: Fill = "zeros",
        **how: Any,
    ) -> Self:
        """The welds of a folder in the layout of the release.

        split: those of one list of its official split; record_ids: those of one list of anybody's, in that order. how: of `MediaReader`.
        Raises DataError (E440) where there is no manifest.
        """
        reading = read_layout(folder, views=shape.views, open_media=False, hashed=False)
        rows = list(reading.rows)
        if split is not None:
            rows = [row for row in rows if row.facts.get("official_split") == split]
        if record_ids is not None:
            by_id = {row.record_id: row for row in rows}
            if missing := [name for name in record_ids if name not in by_id]:
                raise DataError(f"{folder} has no weld {missing[0]}{f' in {split}' if split else ''}. Take ids from data/<dataset>/manifest.json")
            rows = [by_id[name] for name in record_ids]
        return cls(rows, MediaReader(reading.root, shape, **how), shape, fill=fill)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, shape = self.rows[number], self.shape
        media = self.read(row)
        blank = {
            "video": np.zeros((shape.frames, shape.frame_size, shape.frame_size), np.float32),
            "image": np.zeros((shape.views, shape.image_size, shape.image_size, 3), np.float32),
            "audio": np.zeros((shape.columns, shape.bands) if shape.bands else shape.columns, np.float32),
            "series": np.zeros((shape.steps, shape.sensors), np.float32),
        }
        if shape.bands:
            blank["audio"] += np.log(FLOOR)
        filled = {name: _filled(name, blank[name], media.get(name), self.fill) for name in MODALITIES}
        arrays = {name: _turned(name, filled[name][0]) for name in MODALITIES}
        sample: dict[str, Any] = {ARRAYS[name]: array for name, array in arrays.items()}
        sample[ALSO] = sample["post_images"]
        sample["masks"] = {ARRAYS[name]: filled[name][1] for name in MODALITIES}
        sample["time"] = {ARRAYS[name]: filled[name][2] for name in MODALITIES}
        sample["present"] = np.array([filled[name][1].any() for name in MODALITIES])
        sample["label"], sample["anomalous"] = self.classes.index(row.fault or GOOD), row.label
        return sample | {"record_id": row.record_id}


class MediaReader:
    """Opens the files of a weld: grey frames from the arc on, photographs, sound, sensors, all on the clock of the arc.

    nominal: by sensor its centre and spread; crop: shares off the left, the top, the right and the bottom of a photograph, such as the strip with a
    paper label; onset: whether to begin with the arc, or with each file; current, arc_above, relative, limit: as of the encoder kind `sensor_steps`: when
    the arc burns, the weld's own level as the centre, and at most so many spreads. Raises DataError for a file that is there and cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape = DEFAULT,
        *,
        nominal: Mapping[str, tuple[float, float]] | None = None,
        crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        onset: bool = True,
        current: str = CURRENT,
        arc_above: float = 5.0,
        relative: bool = False,
        limit: float = np.inf,
    ) -> None:
        self.folder, self.shape, self.crop, self.onset, self.relative, self.limit = folder, shape, crop, onset, relative, limit
        self.current, self.arc_above = plain(current), arc_above
        self.nominal = {plain(name): figure for name, figure in (nominal or NOMINAL).items()}
        if len(self.nominal) != shape.sensors:
            raise DataError(f"`nominal` has {len(self.nominal)} sensors and the shape {shape.sensors}. Set `sensors` of the shape")

    def __call__(self, row: RecordRow) -> Media:
        read = {"video": self._video, "image": self._photos, "audio": self._sound, "series": self._sensors}
        return {name: read[name](self.folder / row.paths[name]) for name in MODALITIES if name in row.paths and (self.folder / row.paths[name]).exists()}

    def _video(self, path: Path) -> Medium:
        from stages.datasets.arc_clock import nearest_frames, seen
        from stages.datasets.media import read_grey_film

        film = read_grey_film(path, self.shape.frame_size)
        start = (seen(film.frames, film.time_s) or 0.0) if self.onset else 0.0
        at = nearest_frames(film.time_s, self.shape.frames, start, self.shape.clock_s)
        return Medium(film.frames[at], ((film.time_s[at] - start) / self.shape.clock_s).clip(0, 1))

    def _photos(self, folder: Path) -> Medium:
        from stages.datasets.images import resize_image
        from stages.datasets.media import read_pictures
        from stages.datasets.weld_files import angles, cropped, photos

        pictures = [resize_image(cropped(picture, self.crop), self.shape.image_size) for picture in read_pictures(folder, self.shape.views)]
        at = angles(photos(folder)[: self.shape.views], self.shape.views)
        return Medium(np.stack(pictures), np.asarray(at) / max(self.shape.views - 1, 1), at)

    def _sound(self, path: Path) -> Medium:
        from stages.datasets.arc_clock import heard
        from stages.datasets.media import read_audio

        sound = read_audio(path, self.shape.rate)
        start = round((heard(sound.samples, sound.rate) or 0.0) * sound.rate) if self.onset else 0
        samples = sound.samples[start : start + round(self.shape.clock_s * sound.rate)]
        values = log_mel(samples, sound.rate, self.shape.bands) if self.shape.bands else samples
        values = values[: self.shape.columns]
        return Medium(values, np.arange(len(values)) / self.shape.columns)

    def _sensors(self, path: Path) -> Medium:
        from stages.datasets.arc_clock import resampled
        from stages.datasets.weld_files import arc_on, chosen_sensors, read_log

        log = read_log(path)
        start = (arc_on(log, self.current, self.arc_above) or 0.0) if self.onset else 0.0
        moments, values = resampled(log, start, self.shape.steps, self.shape.rate_hz, gap_s=2.0)
        at = np.rint((moments - start) * self.shape.rate_hz).astype(int).tolist()  # steps within a gap of the clock stay padding
        if self.relative:
            from stages.encoders.media.sensor_steps import own_level

            values = values - own_level(log, self.current, self.arc_above) + [self.nominal.get(name, (0.0, 1.0))[0] for name in log.variables]
        scaled = chosen_sensors(path, log.variables, values, self.nominal).clip(-self.limit, self.limit)
        return Medium(scaled, ((moments - start) / self.shape.clock_s).clip(0, 1), at)


def log_mel(samples: NDArray[np.float32], rate: int, bands: int) -> NDArray[np.float32]:
    """(n,) to (F, M): natural logarithms of power, a column each 10 ms."""
    import torch
    import torchaudio

    length = round(rate * FRAME_S)
    spectrogram = torchaudio.transforms.MelSpectrogram(rate, n_fft=length, hop_length=round(rate * COLUMN_S), n_mels=bands, norm="slaney")
    whole = np.pad(samples, (0, max(length - len(samples), 0)))
    return (spectrogram(torch.from_numpy(whole)) + FLOOR).log().T.numpy()


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of tensors for `DataLoader(..., collate_fn=collate)`; both names of the photographs stay one tensor, ids a list."""
    import torch

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([sample[name] for sample in samples]))

    batch: dict[str, Any] = {name: stacked(name) for name in (*ARRAYS.values(), "present")}
    batch[ALSO] = batch["post_images"]
    for name in ("masks", "time"):
        batch[name] = {part: torch.from_numpy(np.stack([sample[name][part] for sample in samples])) for part in ARRAYS.values()}
    batch |= {name: torch.tensor([sample[name] for sample in samples]) for name in ("label", "anomalous")}
    return batch | {"record_id": [sample["record_id"] for sample in samples]}


def _filled(name: str, blank: NDArray[np.float32], medium: Medium | None, fill: Fill) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """The array, its mask and its times, all along the first axis."""
    mask, time = np.zeros(len(blank), bool), np.zeros(len(blank), np.float32)
    if medium is None or not len(medium.values):
        return blank, mask, time
    values = medium.values.astype(np.float32) / (255 if medium.values.dtype == np.uint8 else 1)
    if values.shape[1:] != blank.shape[1:] or len(values) > len(blank):
        raise ValueError(f"the reader gave {name} of shape {values.shape}, expected at most {blank.shape}")
    at = np.arange(len(values)) if medium.place is None else np.asarray(medium.place)
    blank[at], mask[at], time[at] = values, True, medium.time
    if name == "image" and fill == "repeat":
        before = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
        blank = blank[np.where(before < 0, np.argmax(mask), before)]
    return blank, mask, time


def _turned(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the axis of time first to the order of axes that models expect."""
    if name == "video":
        return values[:, None]
    if name == "image":
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    return np.ascontiguousarray(values.T)[None] if name == "audio" else values
