"""Which raw media a model of welds is shown, and how they are read: the lists of a prepared data set, and what its own encoder entries say of its media."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import io
from stages.datasets.record_adapters import RecordRow
from stages.datasets.record_sets import manifest
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import root_of
from stages.datasets.weld_files import NOMINAL, plain
from stages.datasets.welding_dataset import DEFAULT, MODALITIES, Shape, WeldingDataset
from stages.errors import UserError
from stages.fusion.finetuned import Config, Reading, class_places
from stages.fusion.raw_media import MediaSource
from stages.params import RecordTask

if TYPE_CHECKING:
    from collections.abc import Sequence

FILM, PHOTO = 64, 96  # pixels a side for the twins, as generated welds have
FILM_REAL, PHOTO_REAL = 256, 224  # for published networks


class Split(NamedTuple):
    """Labelled welds of one list that have any medium at all."""

    rows: list[RecordRow]
    root: Path
    bare: int  # welds that were left out, as none of their four media is there


def split_of(dataset: str, name: str, project: Path = Path()) -> Split:
    """A list of a prepared data set, in the order of its manifest. Raises Missing where it was not prepared, UserError where the list is empty."""
    told = {row["record_id"]: row for row in manifest(dataset, project) if row["split"] == name and row["label"] != UNKNOWN}
    folder = project / "data" / dataset
    root, table = root_of(folder / "dataset.json"), {row["record_id"]: row for row in io.read_table(folder / "samples.parquet")}
    rows = [_row(table[one], told[one]) for one in told]
    there = shown(rows, root)
    if not there:
        raise UserError(f"{dataset} has no labelled weld with media in {name} ({len(rows)} are listed, below {root}). Run `assay weld labels {dataset}`")
    return Split(there, root, len(rows) - len(there))


def shown(rows: Sequence[RecordRow], root: Path) -> list[RecordRow]:
    """Those of which any of the four media is there."""
    return [row for row in rows if any(name in row.paths and _there(root / row.paths[name]) for name in MODALITIES)]


def _there(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def _row(sample: dict[str, Any], told: dict[str, Any]) -> RecordRow:
    paths = {name: path for name in MODALITIES if (path := sample.get(f"{name}_path"))}
    return RecordRow(sample["record_id"], paths, told["label"], told["fault"] or "", told["group"])


def source_of(rows: Sequence[RecordRow], root: Path, config: Config) -> MediaSource:
    """Welds as a model of this configuration is shown them; a fault that it never learnt is class -1."""
    import torch

    labels, faults = [row.label for row in rows], [row.fault for row in rows]
    welds = WeldingDataset([row._replace(fault="") for row in rows], config.reader(root), config.shape)
    return MediaSource(welds, class_places(labels, faults, config.classes), torch.tensor(labels), faults)


def entries(task: RecordTask, dataset: str) -> dict[str, dict[str, Any]]:
    """By medium the options of the encoder entry that the data set itself uses; none where it has no extract."""
    jobs = {job.modality: job.encoder for job in task.extracts.values() if job.dataset == dataset}
    return {name: dict(task.entry("encoders", jobs[name]).options) if name in jobs else {} for name in MODALITIES}


def shape_of(said: dict[str, dict[str, Any]], twins: dict[str, bool], film: int | None, photo: int | None) -> Shape:
    """The arrays that a data set's own encoder entries speak of. twins: by medium, whether a twin looks at it. film, photo: pixels a side."""
    clock_s = next((said[name]["clock_s"] for name in MODALITIES if "clock_s" in said[name]), DEFAULT.clock_s)
    return DEFAULT._replace(
        frames=said["video"].get("frames", DEFAULT.frames),
        frame_size=film or (FILM if twins["video"] else FILM_REAL),
        views=said["image"].get("views", DEFAULT.views),
        image_size=photo or (PHOTO if twins["image"] else PHOTO_REAL),
        bands=DEFAULT.bands if twins["audio"] else 0,
        steps=said["series"].get("steps", DEFAULT.steps),
        sensors=len(said["series"].get("nominal") or NOMINAL),
        rate_hz=said["series"].get("rate_hz", DEFAULT.rate_hz),
        clock_s=clock_s,
    )


def reading_of(said: dict[str, dict[str, Any]]) -> Reading:
    sensors = said["series"]
    given: dict[str, Any] = {name: sensors[name] for name in ("relative", "onset", "current", "arc_above") if name in sensors}
    given["limit"] = sensors.get("limit", 8.0)
    given |= {"crop": said["image"]["crop"]} if said["image"].get("crop") else {}
    return Reading(nominal={plain(name): tuple(one) for name, one in (sensors.get("nominal") or NOMINAL).items()}, **given)


def fingerprint(dataset: str, project: Path = Path()) -> str:
    """Of what is learnt from: the lists, and what the media of each weld hold."""
    folder = project / "data" / dataset
    media = [[row["record_id"], *(row.get(f"{name}_hash") for name in MODALITIES)] for row in io.read_table(folder / "samples.parquet")]
    return io.content_hash([manifest(dataset, project), media])
