"""Published archives taken by path: unpacked into the data set's own folder, after every member has been looked at.

A member may be a plain file or a folder below the archive's root, and nothing else: no absolute path, no `..`, no link, no device, no two names
that are one on another system. Numbers and sizes are bounded before a byte is written, and bytes are counted again while they are. Unpacking goes
to a neighbouring folder that gets its name at the end, so that a killed run, a truncated archive or a full disk leaves nothing that looks complete.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from stages.datasets.samples import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
MOST_FILES = 200_000
MOST_BYTES = 64 * 10**9
MOST_RATIO = 200  # of unpacked to packed bytes; images hardly shrink at all
SLACK = 2**20  # bytes that the ratio does not count: small archives of text shrink much
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))})


class Member(NamedTuple):
    name: str
    size: int
    folder: bool
    plain: bool  # a file or a folder, not a link or a device
    entry: Any  # what its archive calls it


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def unpacked(archive: Path, into: Path) -> Path:
    """The folder `into`/unpacked with the files of the archive; where it has one folder at its root, that folder.

    Raises DataError for an archive that cannot be read in full or holds what it should not; `into` is then as it was.
    """
    place, unfinished = into / "unpacked", into / ".unpacked.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    try:
        with _opened(archive) as (members, read):
            _check(archive, members)
            for member in members:
                _write(archive, unfinished / PurePosixPath(member.name), member, read)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DataError(
            f"{archive} cannot be unpacked: {error or type(error).__name__}. Fetch it again and compare its checksum"
        ) from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.mkdir(parents=True, exist_ok=True)
    unfinished.rename(place)
    inside = list(place.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[Member], Any]]:
    """The members, and a function that opens one for reading."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            members = [Member(one.filename, one.file_size, one.is_dir(), _plain(one), one) for one in packed.infolist()]
            yield members, packed.open
    else:
        with tarfile.open(archive) as packed:
            yield [Member(one.name, one.size, one.isdir(), one.isreg() or one.isdir(), one) for one in packed], packed.extractfile


def _plain(entry: zipfile.ZipInfo) -> bool:
    """Unix archivers note the kind of file in the upper half: 4 is a folder, 8 a file, 0 unknown."""
    return entry.external_attr >> 28 in (0, 4, 8)


def _check(archive: Path, members: list[Member]) -> None:
    """Refuse the whole archive for one member that is not right."""
    seen: dict[str, str] = {}
    for member in members:
        if reason := _why_not(member):
            raise _refused(archive, f"its member {member.name!r} {reason}")
        key = PurePosixPath(member.name).as_posix().casefold()
        if key in seen and not member.folder:
            raise _refused(archive, f"its members {seen[key]!r} and {member.name!r} are one file on some systems")
        seen[key] = member.name
    size, packed = sum(member.size for member in members), archive.stat().st_size
    if len(members) > MOST_FILES or size > MOST_BYTES or size > MOST_RATIO * packed + SLACK:
        raise _refused(archive, f"{len(members):,} members of {size:,} bytes come out of {packed:,}, more than a data set of images would")


def _why_not(member: Member) -> str | None:
    path = PurePosixPath(member.name)
    if not member.plain:
        return "is a link or a device, not a file"
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        return "leads out of the archive"
    if any(part.split(".")[0].casefold() in RESERVED or part != part.rstrip(". ") for part in path.parts):
        return "has a name that some systems keep for themselves"
    return "has a control character in its name" if any(ord(letter) < 32 for letter in member.name) else None


def _refused(archive: Path, reason: str) -> DataError:
    return DataError(f"{archive} was not unpacked: {reason}. If you trust it, unpack it yourself and name the folder as `source`")


def _write(archive: Path, target: Path, member: Member, read: Any) -> None:
    """One member; never more bytes than it declared."""
    if member.folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with read(member.entry) as source, target.open("xb") as file:
        left = _copied(source, file, member.size)
    if left:
        raise EOFError(f"{member.name} ends {left} bytes early" if left > 0 else f"{member.name} is larger than it says")


def _copied(source: IO[bytes], file: IO[bytes], size: int) -> int:
    """Bytes that were missing; negative where there were more than `size`."""
    left = size
    while left >= 0 and (part := source.read(min(2**20, left + 1))):
        file.write(part)
        left -= len(part)
    return left
