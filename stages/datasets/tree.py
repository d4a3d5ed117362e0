"""Walking a user's folders: sorted, without dotfiles, Thumbs.db or other files that are no images, and paths as POSIX text."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from stages.datasets.images import is_image_name

MASK_SUFFIXES = ("_mask", "_gt", "_label", "-mask", ".mask")


def folders(folder: Path) -> list[Path]:
    """Sub-folders by name; hidden ones and __MACOSX are left out."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))


def images(folder: Path) -> list[Path]:
    """Files in this very folder that are images by their name, sorted."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if is_image_name(child) and child.is_file())


def images_below(folder: Path) -> list[Path]:
    """As `images`, with all sub-folders."""
    return images(folder) + [path for child in folders(folder) for path in images_below(child)]


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """The masks in a folder, keyed by the stem of the image they belong to: `012_mask.png` and `012.bmp` are both of `012`."""
    return {_image_stem(path): path for path in images(folder)}


def _image_stem(path: Path) -> str:
    for suffix in MASK_SUFFIXES:
        if path.stem.lower().endswith(suffix):
            return path.stem[: -len(suffix)]
    return path.stem


@overload
def relative(root: Path, path: Path) -> str: ...
@overload
def relative(root: Path, path: None) -> None: ...
def relative(root: Path, path: Path | None) -> str | None:
    """POSIX text relative to `root`, or None for None."""
    return None if path is None else path.relative_to(root).as_posix()
