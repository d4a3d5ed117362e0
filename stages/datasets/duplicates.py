"""The same picture twice: exact copies by SHA-256, near copies by a difference hash and then a look at the pixels.

A 256-bit difference hash names candidates within a category. Two images are near copies when the band-limited phase-only correlation of
the two (Ito et al., IEICE Trans. Fundamentals E87-A, 2004) peaks above SIMILAR at a shift of at most 3 % of the side, and when, laid on
each other there, no place differs by more than DIFFERENT grey levels: equal parts under one camera pass the first test, and fail the
second.

Measured with 300 planted copies of each kind on ELPV (2,624 solar cells, 3.4 million pairs): all that were re-encoded as JPEG 90, resized
to 50, 75 or 150 % or shifted by one or two pixels are found, 96 % at JPEG 70 and 87 % at JPEG 50; of magnetic tiles 99 % or more of each
kind. False pairs: 8 in 13.8 million where each cell is held against mirror images of the other cells, which cannot be the same picture;
so about 2 of the 214 pairs found in ELPV, and none of those joins a mono- to a polycrystalline cell. The others are sister wafers with
the same grain. Images without detail at SIDE (far smaller than it, or blurred) give few frequencies to compare: a lossy copy of one may
be missed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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
DIFFERENT = 4.0  # grey levels, root mean square over a PLACE x PLACE square at SIDE
PLACE = 8
CHAIN = 1 / 3  # of a category: a larger chain of near copies means that the whole category looks alike
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

    `read` gives the (H, W, 3) uint8 image at a position; it is called for candidates only, once each. Where near copies would chain more
    than CHAIN of a category together (and more than ten images), they are equal parts and not copies, and none of that category counts.
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


def spectrum(image: np.ndarray) -> np.ndarray:
    """(2 BAND + 1, BAND + 1) complex64: the frequencies of the band, of the image at SIDE under a Hann window. image: (H, W, 3) uint8."""
    small = np.asarray(_grey(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    window = np.hanning(SIDE).astype(np.float32)  # the borders of two shifted copies differ
    frequencies = np.fft.rfft2((small - small.mean()) * window[:, None] * window)
    return (frequencies[_vertical(), : BAND + 1] * _in_band()).astype(np.complex64)


def similarity(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How alike the phases are at the best shift, and that shift, of spectra (P, 2 BAND + 1, BAND + 1).

    Returns (P,) in -1..1, where an image without structure is like nothing, and (P, 2) pixels at SIDE down and across, to a sixteenth where
    the two may be copies.
    """
    first, second = _phases(first), _phases(second)
    alike, shift = _peak(first, second, np.zeros((len(first), 2)), np.arange(-SHIFT, SHIFT + 0.5, 0.5))
    close = np.flatnonzero(alike > SIMILAR - 0.1)  # a quarter of a pixel beside the peak costs at most 4 %
    if len(close):
        alike[close], shift[close] = _peak(first[close], second[close], shift[close], np.arange(-8, 9) / 16)
    return alike, shift


def difference(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(P,) grey levels: the largest root mean square over any PLACE x PLACE square once the second is shifted and its contrast fitted."""
    down, across = (
        np.exp(-2j * np.pi * shift[:, axis, None] * steps / SIDE) for axis, steps in enumerate((_vertical(), np.arange(BAND + 1)))
    )
    moved = second * down[:, :, None] * across[:, None, :]
    gain = _energy(first, moved) / np.maximum(_energy(moved, moved), 1e-9)
    rest = first - gain[:, None, None] * moved
    full = np.zeros((len(rest), SIDE, SIDE // 2 + 1), dtype=np.complex64)
    full[:, _vertical(), : BAND + 1] = rest
    squares = np.fft.irfft2(full, s=(SIDE, SIDE)).reshape(-1, SIDE // PLACE, PLACE, SIDE // PLACE, PLACE) ** 2
    return np.sqrt(squares.mean(axis=(2, 4))).max(axis=(1, 2))


def _phases(spectra: np.ndarray) -> np.ndarray:
    """Unit energy, and every frequency that rises above NOISE weighs the same; zero where there is no structure."""
    flat = spectra / (np.abs(spectra) + NOISE)
    energy = _energy(flat, flat)[:, None, None]
    return np.where(energy > 1, flat / np.sqrt(np.maximum(energy, 1)), 0).astype(np.complex64)


def _energy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) real inner product over the whole spectrum, of which half is stored."""
    return np.sum((first * second.conj()).real * _weight(), axis=(1, 2))


def _peak(first: np.ndarray, second: np.ndarray, around: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest correlation over shifts `around` (P, 2) plus each of `steps` in both directions, and where it lies."""
    shifts = around[:, :, None] + steps  # (P, 2, S)
    down = np.exp(2j * np.pi * shifts[:, 0, :, None] * _vertical() / SIDE).astype(np.complex64)
    across = np.exp(2j * np.pi * np.arange(BAND + 1)[:, None] * shifts[:, 1, None, :] / SIDE).astype(np.complex64)
    correlation = (down @ (first * second.conj() * _weight()) @ across).real.reshape(len(first), -1)  # (P, S * S)
    best = correlation.argmax(axis=1)
    return correlation.max(axis=1), around + np.stack([steps[best // len(steps)], steps[best % len(steps)]], axis=1)


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


def _near(members: list[int], content_hashes: Sequence[str], hashes: Sequence[bytes], read: Callable[[int], np.ndarray]) -> list[Pair]:
    """The near pairs of one category, or none where they chain too much of it together."""
    place = {member: at for at, member in enumerate(members)}
    pairs = list(_similar(members, content_hashes, hashes, read))
    chains = Counter(clusters(len(members), [(place[pair.first], place[pair.second]) for pair in pairs]))
    return pairs if max(chains.values()) <= max(10, CHAIN * len(members)) else []


def _similar(
    members: list[int], content_hashes: Sequence[str], hashes: Sequence[bytes], read: Callable[[int], np.ndarray]
) -> Iterator[Pair]:
    spectra: dict[int, np.ndarray] = {}
    for candidates in _candidates(np.stack([np.frombuffer(hashes[member], dtype=np.uint64) for member in members])):
        pairs = [(members[a], members[b]) for a, b in candidates if content_hashes[members[a]] != content_hashes[members[b]]]
        for position in sorted({position for pair in pairs for position in pair} - spectra.keys()):
            spectra[position] = spectrum(read(position))
        for start in range(0, len(pairs), BLOCK):
            part = pairs[start : start + BLOCK]
            first, second = (np.stack([spectra[pair[side]] for pair in part]) for side in (0, 1))
            alike, shift = similarity(first, second)
            near = np.flatnonzero(alike >= SIMILAR)
            apart = difference(first[near], second[near], shift[near]) if len(near) else []
            yield from (Pair(*part[at], False, round(float(alike[at]), 3)) for at, levels in zip(near, apart) if levels <= DIFFERENT)


def _candidates(words: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Index pairs (first < second) whose hashes differ in at most HASH_DISTANCE bits, in blocks of rows. words: (N, 4) uint64."""
    for start in range(0, len(words), BLOCK):
        differing = np.bitwise_count(words[start : start + BLOCK, None] ^ words[None, start:]).sum(axis=2)  # (rows, N - start)
        rows, columns = np.nonzero(differing <= HASH_DISTANCE)
        yield [(start + int(row), start + int(column)) for row, column in zip(rows, columns, strict=True) if column > row]
