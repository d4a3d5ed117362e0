"""The same picture twice: exact copies by SHA-256, near copies by a difference hash and then a look at the pixels.

A 256-bit difference hash names candidates within a category; a pair is a near duplicate when the band-limited phase-only correlation of the
two images (Ito et al., IEICE Trans. Fundamentals E87-A, 2004) peaks above SIMILAR at a shift of at most 3 % of the side. Phase alone counts
there, so structure that all parts share (a grid, a rim) fills few of the frequencies and does not make different parts alike.

Measured on ELPV (2,624 cells, 3.4 million pairs) with 300 planted copies of each kind: it finds all that were re-encoded as JPEG 90,
resized to 50, 75 or 150 % or shifted by one or two pixels, 96 % at JPEG 70 and 87 % at JPEG 50; of magnetic tiles at least 98 % of each
kind. False pairs: 8 in 13.8 million, where each cell is held against mirror images of the other cells, which cannot be the same picture.
That is about 2 of the 524 pairs that it finds, and none of those joins a mono- to a polycrystalline cell. The others are real: modules
that were photographed twice, and sister wafers with the same grain. Images that are smooth at SIDE (far smaller than it, or blurred) have
few frequencies to compare: a lossy copy of one may be missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

HASH_SIDE = 16  # 16 x 16 differences: 256 bits
HASH_DISTANCE = 56  # bits in which the hashes of a candidate pair may differ
SIDE = 128  # pixels; images are compared at this size
BAND = 24  # frequencies up to this many periods per side
NOISE = 20.0  # amplitude of a frequency at which rounding and mild compression drown it
SHIFT = 4.0  # pixels at SIDE
SIMILAR = 0.85  # of 1 for identical images
BLOCK = 256  # candidate pairs, or rows of hashes, at a time


class Pair(NamedTuple):
    first: int  # positions in the lists given, first < second
    second: int
    exact: bool
    similarity: float  # 1 for exact copies, the correlation peak otherwise


def difference_hash(image: np.ndarray) -> bytes:
    """32 bytes: whether the brightness rises from each of 16 x 17 cells to the next. image: (H, W, 3) uint8."""
    cells = np.asarray(_grey(image).resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR))
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def find(
    content_hashes: Sequence[str], hashes: Sequence[bytes], categories: Sequence[str], read: Callable[[int], np.ndarray]
) -> list[Pair]:
    """Exact pairs over the whole data set (neighbours of each chain of copies) and near pairs within each category, sorted.

    `read` gives the (H, W, 3) uint8 image at a position; it is called for candidates only, once each.
    """
    exact = [Pair(first, second, True, 1.0) for chain in _positions(content_hashes) for first, second in pairwise(chain)]
    near = [pair for members in _positions(categories) for pair in _near(members, content_hashes, hashes, read)]
    return sorted(exact + near)


def clusters(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """For each of `count` positions the smallest position that it is linked to, directly or through others."""
    root = list(range(count))

    def top(position: int) -> int:
        while root[position] != position:
            root[position] = root[root[position]]
            position = root[position]
        return position

    for first, second in links:
        low, high = sorted((top(first), top(second)))
        root[high] = low
    return [top(position) for position in range(count)]


def phase(image: np.ndarray) -> np.ndarray:
    """(2 BAND + 1, BAND + 1) complex64 spectrum of unit energy in which every frequency of the band that rises above NOISE weighs the same.

    Zero for an image without structure, which is therefore like nothing.
    """
    small = np.asarray(_grey(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    window = np.hanning(SIDE).astype(np.float32)  # the borders of two shifted copies differ
    spectrum = np.fft.rfft2((small - small.mean()) * window[:, None] * window)
    band = spectrum[_vertical(), : BAND + 1] * _in_band()
    flat = band / (np.abs(band) + NOISE)
    energy = np.sum(np.abs(flat) ** 2 * _weight())
    return (flat / np.sqrt(energy)).astype(np.complex64) if energy > 1 else np.zeros_like(flat, dtype=np.complex64)


def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) peak correlation over shifts of up to SHIFT pixels in steps of a half; first and second: (P, 2 BAND + 1, BAND + 1)."""
    shifts = np.arange(-SHIFT, SHIFT + 0.5, 0.5)
    down = np.exp(2j * np.pi * np.outer(shifts, _vertical()) / SIDE).astype(np.complex64)
    across = np.exp(2j * np.pi * np.outer(np.arange(BAND + 1), shifts) / SIDE).astype(np.complex64)
    correlation = down @ (first * second.conj() * _weight()) @ across  # (P, shifts, shifts)
    return correlation.real.max(axis=(1, 2))


def _grey(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).convert("L")


def _vertical() -> np.ndarray:
    return np.r_[0 : BAND + 1, -BAND:0]


def _in_band() -> np.ndarray:
    radius_squared = _vertical()[:, None] ** 2 + np.arange(BAND + 1) ** 2
    return ((radius_squared >= 4) & (radius_squared <= BAND**2)).astype(np.float32)


def _weight() -> np.ndarray:
    """Half of the spectrum stands for all of it: columns past the first count twice."""
    return np.where(np.arange(BAND + 1) > 0, 2, 1).astype(np.float32)


def _positions(keys: Sequence[str]) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        found[key].append(position)
    return [found[key] for key in sorted(found)]


def _near(members: list[int], content_hashes: Sequence[str], hashes: Sequence[bytes], read: Callable[[int], np.ndarray]) -> Iterator[Pair]:
    phases: dict[int, np.ndarray] = {}
    for candidates in _candidates(np.stack([np.frombuffer(hashes[member], dtype=np.uint64) for member in members])):
        pairs = [(members[a], members[b]) for a, b in candidates if content_hashes[members[a]] != content_hashes[members[b]]]
        for position in sorted({position for pair in pairs for position in pair} - phases.keys()):
            phases[position] = phase(read(position))
        for start in range(0, len(pairs), BLOCK):
            part = pairs[start : start + BLOCK]
            peaks = similarity(np.stack([phases[a] for a, _ in part]), np.stack([phases[b] for _, b in part]))
            yield from (Pair(a, b, False, round(float(peak), 3)) for (a, b), peak in zip(part, peaks, strict=True) if peak >= SIMILAR)


def _candidates(words: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Index pairs (first < second) whose hashes differ in at most HASH_DISTANCE bits, in blocks of rows. words: (N, 4) uint64."""
    for start in range(0, len(words), BLOCK):
        differing = np.bitwise_count(words[start : start + BLOCK, None] ^ words[None, start:]).sum(axis=2)  # (rows, N - start)
        rows, columns = np.nonzero(differing <= HASH_DISTANCE)
        yield [(start + int(row), start + int(column)) for row, column in zip(rows, columns, strict=True) if column > row]
