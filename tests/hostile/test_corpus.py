"""Hostile and broken files, each written here, each taken where such a file would enter: a clear error, nothing executed, nothing left behind.

An attack is a function that writes its files into a folder and then does what a user would. Whatever could run code touches a canary.
"""

from __future__ import annotations

import io as streams
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages import errors, io, params
from stages.datasets import adapters, archive, folder
from stages.datasets.images import read_image, read_mask
from stages.detectors import artefact
from stages.encoders.encoder import resolve_device
from stages.encoders.shards import Store

Attack = Callable[[Path], object]
CORPUS: dict[str, Attack] = {}
CANARY = "canary"


class Payload:
    """What unpickling would run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place / CANARY),)


def attack(name: str) -> Callable[[Attack], Attack]:
    def register(function: Attack) -> Attack:
        assert name not in CORPUS
        CORPUS[name] = function
        return function

    return register


def bytes_of(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    file = streams.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format=kind)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


# Images: by content and name.
IMAGES = {
    "empty": ("a.png", b""),
    "text": ("a.png", b"this is no image"),
    "html": ("a.jpg", b"<html><script>alert(1)</script></html>"),
    "svg": ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
    "zeros": ("a.bmp", bytes(4096)),
    "png signature alone": ("a.png", b"\x89PNG\r\n\x1a\n"),
    "png cut in its header": ("a.png", bytes_of("PNG")[:20]),
    "png cut in its pixels": ("a.png", bytes_of("PNG")[:-2000]),
    "png with damaged pixels": ("a.png", bytes_of("PNG")[:100] + b"\xff" * 500 + bytes_of("PNG")[600:]),
    "png of no width": ("a.png", png(0, 10, b"")),
    "png that says it is a million wide": ("a.png", png(1_000_000, 1_000_000, b"\0")),
    "png bomb": ("a.png", png(20_000, 20_000, bytes(2501 * 20_000), depth=1)),
    "jpeg cut in half": ("a.jpg", bytes_of("JPEG")[: len(bytes_of("JPEG")) // 2]),
    "jpeg of two bytes": ("a.jpg", b"\xff\xd8"),
    "bmp that says it is huge": ("a.bmp", bytes_of("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + bytes_of("BMP")[26:]),
    "bmp cut": ("a.bmp", bytes_of("BMP")[:200]),
    "tiff cut": ("a.tif", bytes_of("TIFF")[:300]),
    "tiff of floats": ("a.tif", bytes_of("TIFF", mode="F")),
    "webp cut": ("a.webp", bytes_of("WEBP")[:60]),
    "ppm that says it is huge": ("a.ppm", b"P6 99999999 99999999 255\n\0\0\0"),
    "gif, which no data set of photographs is in": ("a.png", bytes_of("GIF", mode="P")),
    "pickle under the name of an image": ("a.png", pickle.dumps({"a": 1})),
    "name of 200 letters": ("x" * 200 + ".png", b"no image"),
    "name with markup": ("<script>alert(1)<.png", b"no image"),
    "name with a line break": ("a\nb.png", b"no image"),
}
for title, (file_name, content) in IMAGES.items():

    @attack(f"image: {title}")
    def _(place: Path, file_name: str = file_name, content: bytes = content) -> object:
        (place / file_name).write_bytes(content)
        return read_image(place / file_name)


@attack("image: a folder with the name of one")
def _(place: Path) -> object:
    (place / "a.png").mkdir()
    return read_image(place / "a.png")


@attack("image: a link to nowhere")
def _(place: Path) -> object:
    (place / "a.png").symlink_to(place / "gone.png")
    return read_image(place / "a.png")


@attack("mask: text")
def _(place: Path) -> object:
    (place / "a.png").write_bytes(b"no mask")
    return read_mask(place / "a.png")


@attack("mask: 32-bit values")
def _(place: Path) -> object:
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(place / "a.tif")
    return read_mask(place / "a.tif", 127) if read_image(place / "a.tif") is not None else None


# Foreign tensors.
FOREIGN: dict[str, Callable[[Path], object]] = {
    "code in a pickle": lambda path: torch.save({"x": Payload(path.parent)}, path),
    "code in the oldest format": lambda path: torch.save({"x": Payload(path.parent)}, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Payload(path.parent))),
    "array of objects": lambda path: torch.save({"x": np.array([Payload(path.parent), {}], dtype=object)}, path),
    "not a number": lambda path: torch.save({"x": torch.tensor([1.0, float("nan")])}, path),
    "infinity deep inside": lambda path: torch.save({"a": [{"b": (torch.tensor([float("inf")]),)}]}, path),
    "array of text": lambda path: torch.save({"x": np.array(["a", "b"])}, path),
    "array of infinity": lambda path: torch.save({"x": np.array([np.inf])}, path),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"tensor([1, 2])"),
    "zip without a pickle": lambda path: zipped(path, {"readme.txt": b"hello"}),
    "deflate bomb": lambda path: zipped(path, {"archive/data.pkl": bytes(300 * 2**20)}),
    "cut archive": lambda path: (torch.save({"x": torch.zeros(1000)}, path), path.write_bytes(path.read_bytes()[:-300])),
}


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


for title, write in FOREIGN.items():

    @attack(f"foreign .pt: {title}")
    def _(place: Path, write: Callable[[Path], object] = write) -> object:
        write(place / "x.pt")
        return io.load_foreign(place / "x.pt")


@attack("weights: code in the oldest format")
def _(place: Path) -> object:
    torch.save({"x": Payload(place)}, place / "w.pth", _use_new_zipfile_serialization=False)
    return io.read_weights(place / "w.pth")


def header(content: dict | bytes, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSORS = {
    "empty": b"",
    "header longer than the file": header(b"{}", length=2**40),
    "header that is no JSON": header(b"{not json"),
    "header that is a list": header(b"[1, 2]"),
    "data cut off": header({"x": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}) + bytes(100),
    "shape of another size": header({"x": {"dtype": "F32", "shape": [100], "data_offsets": [0, 40]}}) + bytes(40),
    "tensors that overlap": header({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}) + bytes(8),
    "unknown type of number": header({"x": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
}
for title, content in TENSORS.items():

    @attack(f"safetensors: {title}")
    def _(place: Path, content: bytes = content) -> object:
        (place / "model.safetensors").write_bytes(content)
        return io.read_model(place / "model.safetensors")


# Artefacts of our own, altered.
for title, content in {
    "cut off": b'{"samples": [{"sample_id": "a"',
    "not text": b"\xff\xfe\x00\x01",
    "nested without end": b"[" * 200_000,
    "empty": b"",
}.items():

    @attack(f"json: {title}")
    def _(place: Path, content: bytes = content) -> object:
        (place / "manifest.json").write_bytes(content)
        return io.read_json(place / "manifest.json")


for title, cut in {"text": None, "cut off": -20, "its first bytes": 4}.items():

    @attack(f"parquet: {title}")
    def _(place: Path, cut: int | None = cut) -> object:
        path = place / "samples.parquet"
        io.write_table(path, {"sample_id": ["a", "b"]})
        path.write_bytes(b"sample_id\na\n" if cut is None else path.read_bytes()[:cut])
        return io.read_table(path)


@attack("feature shard: code in a pickle")
def _(place: Path) -> object:
    io.write_json(place / "encoder.json", {"layers": {"x": {"shape": [1], "dtype": "float32"}}})
    io.write_table(place / "index.parquet", {"sample_id": ["a"], "category": ["c"], "shard": ["c-000.pt"], "row": [0]})
    torch.save({"x": Payload(place)}, place / "c-000.pt")
    return Store(place).read(["a"], ["x"])


def model(place: Path, detector: str = "density.padim", options: dict | None = None, state: dict | None = None) -> object:
    io.write_json(place / "config.json", {"detector": detector, "options": options or {}, "model": "padim"})
    io.write_model(place / "model.safetensors", state or {"kept": torch.zeros(1)}, {})
    return artefact.load(place)


CORPUS["model: a class that is no detector"] = lambda place: model(place, "os.system")
CORPUS["model: a path instead of a detector"] = lambda place: model(place, "../../evil")
CORPUS["model: an option that does not exist"] = lambda place: model(place, options={"__class__": "x"})
CORPUS["model: tensors of another model"] = lambda place: model(place, state={"weight": torch.zeros(3)})


# params.yaml
YAML = {
    "python object": "datasets: !!python/object/apply:os.mkdir ['canary']\n",
    "python name": "datasets: !!python/name:os.system\n",
    "python new": "datasets: !!python/object/new:os.mkdir {args: ['canary']}\n",
    "key given twice": "datasets: {}\ndatasets: {}\n",
    "tabs": "datasets:\n\tsolar: 1\n",
    "a list": "- a\n- b\n",
    "nothing": "",
    "a number": "12\n",
    "bracket that never closes": "datasets: [\n",
    "alias of nothing": "datasets: *gone\n",
    "aliases that double": "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqr", "bcdefghijklmnopqrs")),
    "nested without end": "a: " + "[" * 5000,
    "a date that is none": "datasets: 2020-99-99\n",
}
for title, text in YAML.items():

    @attack(f"params.yaml: {title}")
    def _(place: Path, text: str = text) -> object:
        (place / "params.yaml").write_text(text)
        os.chdir(place)
        return params.load()


@attack("params.yaml: bytes that are no text")
def _(place: Path) -> object:
    (place / "params.yaml").write_bytes(b"datasets: \xff\xfe\x80\n")
    return params.load(place / "params.yaml")


ROOT = Path(__file__).parents[2]
for title, (old, new) in {
    "not a number": ("val_fraction: 0.15", "val_fraction: .nan"),
    "infinity": ("target_false_alarm_rate: 0.01", "target_false_alarm_rate: 1e999"),
    "below zero": ("folds: 5", "folds: -5"),
    "text for a number": ("map_size: 224", "map_size: large"),
    "a device that does not exist": ("device: cpu", "device: abacus"),
}.items():

    @attack(f"params.yaml: {title}")
    def _(place: Path, old: str = old, new: str = new) -> object:
        text = (ROOT / "params.yaml").read_text()
        assert old in text
        (place / "params.yaml").write_text(text.replace(old, new))
        return resolve_device(params.load(place / "params.yaml").compute.device)


# Tables of a user
for title, content in {
    "empty": b"",
    "without labels": b"path,kind\na.png,good\n",
    "in another encoding": "path,label\nB\xe4r.png,good\n".encode("latin-1"),
    "with a nul": b"path,label\na\x00.png,good\n",
    "that is a picture": bytes_of("PNG"),
}.items():

    @attack(f"csv: {title}")
    def _(place: Path, content: bytes = content) -> object:
        (place / "labels.csv").write_bytes(content)
        reading = folder.read(place / "labels.csv", place)
        assert not reading.samples
        raise errors.UserError("; ".join(problem.what for problem in reading.problems))


for title, path in {
    "above": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "backslashes": "..\\..\\secret.png",
    "gone": "gone.png",
}.items():

    @attack(f"csv: a path that is {title}")
    def _(place: Path, path: str = path) -> object:
        (place / "labels.csv").write_text(f"path,label\n{path},good\n")
        reading = folder.read(place / "labels.csv", place)
        assert not reading.samples and reading.problems[0].severity == "error"
        raise errors.UserError(reading.problems[0].what)


# Archives
def tarred(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as packed:
        for member in members:
            packed.addfile(member, streams.BytesIO(bytes(member.size)) if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def linked_zip(path: Path) -> Path:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(entry, "/etc/passwd")
    return path


def named_zip(*names: str) -> Attack:
    def write(place: Path) -> Path:
        with zipfile.ZipFile(place / "a.zip", "w") as packed:
            for name in names:
                entry = zipfile.ZipInfo("x")
                entry.filename = name
                packed.writestr(entry, b"x")
        return place / "a.zip"

    return write


def lying_zip(place: Path) -> Path:
    """Declares 10 bytes in its directory and holds 5,000."""
    zipped(place / "a.zip", {"a.png": bytes(5000)})
    content = (place / "a.zip").read_bytes()
    at = content.rindex(b"PK\x01\x02")
    (place / "a.zip").write_bytes(content[: at + 24] + struct.pack("<I", 10) + content[at + 28 :])
    return place / "a.zip"


def encrypted_zip(place: Path) -> Path:
    zipped(place / "a.zip", {"a.png": bytes(100)})
    content = bytearray((place / "a.zip").read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (place / "a.zip").write_bytes(bytes(content))
    return place / "a.zip"


def cut(write: Attack, keep: int) -> Attack:
    def written(place: Path) -> Path:
        path = write(place)
        path.write_bytes(path.read_bytes()[:keep])
        return path

    return written


def bomb_zip(place: Path) -> Path:
    zipped(place / "a.zip", {"a.png": bytes(30 * 2**20)})
    return place / "a.zip"


ARCHIVES: dict[str, Attack] = {
    "zip that climbs": named_zip("../evil.png"),
    "zip that climbs inside": named_zip("a/../../evil.png"),
    "zip with an absolute path": named_zip("/tmp/evil.png"),
    "zip with backslashes": named_zip("..\\evil.png"),
    "zip with a drive": named_zip("C:evil.png"),
    "zip with a name of Windows": named_zip("a/CON.png"),
    "zip with a control character": named_zip("a\x07.png"),
    "zip with one name twice in two cases": named_zip("A.png", "a.png"),
    "zip with a link": lambda place: linked_zip(place / "a.zip"),
    "zip bomb": bomb_zip,
    "zip that lies about a size": lying_zip,
    "zip with a password": encrypted_zip,
    "zip cut off": cut(bomb_zip, 100),
    "tar that climbs": lambda place: tarred(place / "a.tar", member("../evil.png", size=3)),
    "tar with an absolute path": lambda place: tarred(place / "a.tar", member("/evil.png", size=3)),
    "tar with a symbolic link": lambda place: tarred(place / "a.tar", member("a", tarfile.SYMTYPE, target="/etc")),
    "tar with a hard link": lambda place: tarred(place / "a.tar", member("a", tarfile.LNKTYPE, target="/etc/passwd")),
    "tar with a device": lambda place: tarred(place / "a.tar", member("a", tarfile.CHRTYPE)),
    "tar with a pipe": lambda place: tarred(place / "a.tar", member("a", tarfile.FIFOTYPE)),
    "tar bomb": lambda place: tarred(place / "a.tar.xz", member("a", size=300 * 2**20), mode="w:xz"),
    "tar cut off": cut(lambda place: tarred(place / "a.tar.xz", member("a", size=10**6), mode="w:xz"), 60),
    "tar that is text": lambda place: (place / "a.tar").write_text("no archive") and place / "a.tar",
}
for title, write in ARCHIVES.items():

    @attack(f"archive: {title}")
    def _(place: Path, write: Attack = write) -> object:
        packed, into = write(place), place / "into"
        into.mkdir()
        try:
            return adapters.read("folder", packed, into, {})
        finally:
            assert list(into.iterdir()) == [] and not list(place.parent.glob("**/evil*"))


def test_the_corpus_is_no_smaller_than_promised():
    assert len(CORPUS) >= 100


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_ends_in_a_clear_error(name, tmp_path, monkeypatch):
    """Mendable, so one line at the command line; it names the file or the entry, and no code has run."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(errors.MENDED_BY_USERS) as caught:
        CORPUS[name](place)
    assert len(str(caught.value)) > 20 and "Traceback" not in str(caught.value)
    assert not list(tmp_path.glob(f"**/{CANARY}"))


def test_the_attacks_would_work_on_a_careless_reader(tmp_path):
    """The canary sings where a pickle is trusted, so its silence above means something."""
    torch.save({"x": Payload(tmp_path)}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / CANARY).is_dir()


def test_a_sound_archive_is_unpacked_and_read_twice_alike(tmp_path):
    source = {f"photos/{kind}/{number}.png": bytes_of("PNG") for kind in ("good", "bad") for number in range(3)}
    zipped(tmp_path / "photos.zip", source)
    with tarfile.open(tmp_path / "photos.tar.xz", "w:xz") as packed:
        for name, content in source.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, streams.BytesIO(content))
    for name in ("photos.zip", "photos.tar.xz", "photos.zip"):
        reading = adapters.read("folder", tmp_path / name, tmp_path, {})
        assert len(reading.samples) == 6 and {sample.category for sample in reading.samples} == {"photos"}
    assert archive.is_archive(Path("a.TAR.GZ")) and not archive.is_archive(Path("a.csv"))
