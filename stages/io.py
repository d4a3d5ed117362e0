"""Reading and writing artefacts: whole or not at all, the same bytes for the same content, never a pickle.

Every writer goes to a temporary name in the same folder, fsyncs and renames, so that a killed stage or a full disk leaves no file that looks
complete. Foreign `.pt` files enter through `load_foreign` alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from stages.errors import Missing, UserError

if TYPE_CHECKING:
    import numpy
    import pyarrow
    from torch import Tensor

FOREIGN_BYTES = 4 * 2**30  # what one foreign .pt may unpack to
FOREIGN_RATIO = 100  # and how much larger than the file that may be
# What torch's loader of plain tensors raises for a file that is damaged or made to do harm.
_MALFORMED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, struct.error)


class UnsafeFile(UserError, ValueError):
    """A foreign file was refused: it could run code, exhaust memory, or holds values that are not finite."""


class NotNumbers(UnsafeFile):
    """Something in a foreign file is no dense array of finite numbers. key: where, as "a.b[0]"."""

    def __init__(self, path: Path, key: str, what: str) -> None:
        super().__init__(f"{path}: {key} {what}; extract these features again")
        self.key, self.what = key, what


class NotFinite(NotNumbers):
    """Numbers in a foreign file are NaN or infinite."""


class DamagedFile(UserError, ValueError):
    """An artefact is not what a stage has written: cut off, altered, or another kind of file under its name."""

    def __init__(self, path: Path, cause: object) -> None:
        reason = (str(cause).splitlines() or [""])[0][:200] or type(cause).__name__
        super().__init__(f"{path} is damaged: {reason}. Remove it and run the stage that makes it again (`dvc repro`, or `dvc checkout`)")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """An open file that becomes `path` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"disk full while writing {path}; nothing was left behind. Free some space and run again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8 with LF line ends on every system."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    with writing(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Keys in the order given, which writers keep stable; NaN is an error, not a value."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    require(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DamagedFile(path, error) from error


def write_table(path: Path, columns: dict[str, Any], schema: pyarrow.Schema | None = None) -> None:
    """Parquet; the same columns give the same bytes."""
    import pyarrow
    import pyarrow.parquet

    with writing(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), file, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file as dicts."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(require(path)) as file:  # read_table would import pandas
            return file.read().to_pylist()
    except pyarrow.ArrowException as error:
        raise DamagedFile(path, error) from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A `.pt` of plain tensors. Views are cloned: saved as they are, they would drag their whole storage along."""
    import torch

    with writing(path) as file:
        torch.save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, file)


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Our own `.pt`, memory-mapped: rows are read from disk when they are touched."""
    import torch

    require(path)
    try:
        return torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DamagedFile(path, error) from error


def write_model(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """safetensors with `about` as sorted JSON under one metadata key (more than one key is not written in a fixed order)."""
    from safetensors.torch import save

    with writing(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in state.items()}, {"assay": json.dumps(about, sort_keys=True)}))


def read_model(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise DamagedFile(path, error) from error


def load_foreign(path: Path) -> Any:
    """A `.pt` that somebody else wrote: tensors, numpy arrays, plain containers and numbers only.

    Refuses, before anything is unpacked, archives that declare more than they should, and anything that would import code;
    afterwards, values that are not finite. Raises UnsafeFile with the reason.
    """
    import numpy
    import torch

    require(path)
    _refuse_bomb(path)
    allowed = [numpy.ndarray, numpy.dtype, numpy._core.multiarray._reconstruct, numpy._core.multiarray.scalar]
    allowed += [(getattr(numpy._core.multiarray, name), f"numpy.core.multiarray.{name}") for name in ("_reconstruct", "scalar")]
    allowed += [type(numpy.dtype(kind)) for kind in "?bhilqBHILQefd"]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except _MALFORMED as error:
        if kind := re.search(r"numpy\.dtypes\.(\w+)DType", str(error)):
            raise NotNumbers(path, _array_key(path), f"is an array of {kind[1]}, not of numbers") from None
        raise UnsafeFile(f"{path} is not a plain file of tensors and was not loaded: {_reason(error)}") from None
    try:
        _Contents(path).examine(content, at="")
    except RecursionError:
        raise UnsafeFile(f"{path} is nested too deeply: a list or dict in it may hold itself; save its tensors in one dict") from None
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a pretrained network, in the file's own order: safetensors, a `.pt` archive, or torch's format before 1.6.

    The oldest format is no archive, so it cannot be a bomb; weights_only keeps code out of all of them.
    """
    import torch

    if path.suffix == ".safetensors":
        return read_model(path)
    if zipfile.is_zipfile(path):
        return load_foreign(path)
    require(path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
        raise UnsafeFile(f"{path} is not a plain file of tensors and was not loaded: {(str(error).splitlines() or [''])[0]}") from None


def _reason(error: Exception) -> str:
    """What torch's loader has against a file, without its advice to load it all the same."""
    if name := re.search(r"GLOBAL (\S+)", str(error)):
        return f"GLOBAL {name[1]} is nothing that a file of tensors needs"
    lines = [line.strip() for line in str(error).split("WeightsUnpickler error:")[-1].splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _array_key(path: Path) -> str:
    """The name that stands before the first array that is none of numbers. Reads the instructions of a pickle and follows none."""
    import pickletools

    with zipfile.ZipFile(path) as archive:
        instructions = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    key, last, before = "", "", None
    with contextlib.suppress(ValueError):  # instructions that are damaged further on
        for operation, argument, _ in pickletools.genops(instructions):
            if operation.name == "GLOBAL" and str(argument).endswith("_reconstruct"):
                key = last
            elif isinstance(argument, str) and operation.name.endswith("UNICODE"):
                if before == "numpy dtype" and argument[:1] not in tuple("biufc?"):
                    return key
                last = argument
            before = argument if argument is not None and not operation.name.endswith("PUT") else before
    return key


def _refuse_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise UnsafeFile(f"{path} is not a zip-based .pt file as torch writes them since 1.6; save it again with a current torch")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UnsafeFile(f"{path} is a damaged archive: {error}") from error
    if declared > _most_bytes(path):
        raise UnsafeFile(f"{path} ({path.stat().st_size} bytes) would unpack to {declared} bytes; refused as a decompression bomb")


def _most_bytes(path: Path) -> int:
    """What a foreign file may become in memory."""
    return min(FOREIGN_BYTES, FOREIGN_RATIO * path.stat().st_size + 2**20)


class _Contents:
    """Goes through what a foreign file held and adds up what it takes as plain float32; refuses too much of it, and all but finite numbers."""

    def __init__(self, path: Path) -> None:
        self.path, self.most, self.total = path, _most_bytes(path), 0

    def examine(self, content: Any, at: str) -> None:
        import numpy
        import torch

        self._add(1)  # parts that hold others many times over are many, too
        if isinstance(content, dict):
            for key, value in content.items():
                self.examine(value, f"{at}.{key}")
        elif isinstance(content, list | tuple):
            for position, value in enumerate(content):
                self.examine(value, f"{at}[{position}]")
        elif isinstance(content, torch.Tensor):
            self._tensor(content, at.lstrip("."))
        elif isinstance(content, numpy.ndarray):
            self._array(content, at.lstrip("."))

    def _add(self, size: int) -> None:
        self.total += size
        if self.total > self.most:
            what = f"({self.path.stat().st_size} bytes) would take more than {self.most} bytes in memory; refused as a decompression bomb"
            raise UnsafeFile(f"{self.path} {what}")

    def _array(self, array: numpy.ndarray, at: str) -> None:
        import numpy

        self._add(array.size * max(array.itemsize, 4))
        if array.dtype.kind not in "biuf":
            raise NotNumbers(self.path, at, f"is not an array of numbers (dtype {array.dtype})")
        if not numpy.isfinite(array).all():
            raise NotFinite(self.path, at, f"holds NaN or infinity (dtype {array.dtype})")

    def _tensor(self, tensor: Tensor, at: str) -> None:
        """A tensor can be huge without its file being so: rows that all lie in the same bytes, or no bytes at all."""
        import torch

        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            what = f"is not a dense tensor in memory (layout {tensor.layout}, dtype {tensor.dtype}, device {tensor.device})"
            raise NotNumbers(self.path, at, what)
        if tensor.is_complex():
            raise NotNumbers(self.path, at, f"is complex ({tensor.dtype}), expected real numbers")
        self._add(tensor.numel() * max(tensor.element_size(), 4))
        plain = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor  # float8 knows no isfinite
        if plain.is_floating_point() and not (finite := plain.isfinite()).all():
            raise NotFinite(self.path, at, f"holds NaN or infinity, first at {(~finite).nonzero()[0].tolist()}")


def file_hash(path: Path) -> str:
    """SHA-256 of the bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def require(path: Path) -> Path:
    """`path` if there is a file, else Missing with the stage that makes it."""
    if not path.is_file():
        stage = {"data": "prepare", "features": "extract", "models": "train", "metrics": "evaluate"}.get(
            path.parts[0] if path.parts else ""
        )
        hint = f" Run `dvc repro {stage}`." if stage and not path.is_absolute() else ""
        raise Missing(f"{path} is not here.{hint}")
    return path
