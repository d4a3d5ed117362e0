"""Planted copies are found, different pictures of the same structure are not."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.datasets import duplicates
from tests.datasets.trees import texture


def _part(number: int, side: int = 160, contrast: float = 0.5) -> np.ndarray:
    """A part with the grid that all parts have, and a grain of its own."""
    grain = (texture(number, side) * contrast).astype(int) + 60
    grain[::40] = 20
    grain[:, ::40] = 20
    return np.clip(grain + np.random.default_rng(number).normal(0, 4, grain.shape), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=70)
    return np.asarray(Image.open(file).convert("RGB"))


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    side = round(len(image) * factor)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


COPIES = {
    "re-encoded": _jpeg,
    "smaller": lambda image: _resized(image, 0.6),
    "larger": lambda image: _resized(image, 1.4),
    "shifted": lambda image: np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")[4:, :-4],
    "darker": lambda image: (image * 0.8).astype(np.uint8),
}


def _find(pictures: list[np.ndarray], categories: list[str] | None = None) -> list[duplicates.Pair]:
    hashes = [duplicates.difference_hash(picture) for picture in pictures]
    content = [str(picture.tobytes()) for picture in pictures]
    return duplicates.find(content, hashes, categories or ["part"] * len(pictures), pictures.__getitem__)


@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found_and_nothing_else(kind):
    pictures = [_part(number) for number in range(20)]
    found = _find(pictures + [COPIES[kind](picture) for picture in pictures])
    assert [(pair.first, pair.second, pair.exact) for pair in found] == [(number, number + 20, False) for number in range(20)]


def test_the_same_grid_with_another_grain_is_no_copy_although_the_hash_suspects_it(monkeypatch):
    monkeypatch.setattr(duplicates, "HASH_DISTANCE", 256)  # every pair is a candidate
    assert _find([_part(number, contrast=0.1) for number in range(30)]) == []


def test_exact_copies_are_found_across_categories_and_near_ones_within():
    picture = _part(1)
    found = _find([picture, _part(2), picture, _jpeg(picture)], ["a", "a", "b", "b"])
    assert [(pair.first, pair.second, pair.exact) for pair in found] == [(0, 2, True), (2, 3, False)]


def test_flat_pictures_are_like_nothing():
    assert _find([np.full((64, 64, 3), value, dtype=np.uint8) for value in (10, 200, 255)]) == []


def test_the_shift_between_two_copies_is_measured_and_taken_back():
    part = _part(1, side=duplicates.SIDE)
    one, other = (duplicates.spectrum(picture)[None] for picture in (part, np.roll(part, (1, -2), axis=(0, 1))))
    alike, shift = duplicates.similarity(one, other)
    assert np.abs(np.abs(shift[0]) - (1, 2)).max() <= 1 / 8 and alike[0] > 0.9
    assert duplicates.difference(one, other, shift)[0] < duplicates.DIFFERENT < duplicates.difference(one, other, np.zeros((1, 2)))[0]


def test_similarity_is_one_for_the_same_picture_and_symmetric():
    one, other = duplicates.spectrum(_part(1))[None], duplicates.spectrum(_part(2))[None]
    alike, shift = duplicates.similarity(one, one)
    assert alike[0] == pytest.approx(1, abs=1e-4) and shift.tolist() == [[0, 0]]
    assert duplicates.difference(one, one, shift)[0] == pytest.approx(0, abs=1e-3)
    assert duplicates.similarity(one, other)[0][0] == pytest.approx(duplicates.similarity(other, one)[0][0], abs=1e-3)


def test_the_same_part_with_a_small_defect_is_no_copy():
    good = _part(1)
    bad = good.copy()
    bad[70:86, 70:86] = np.clip(bad[70:86, 70:86].astype(int) - 16, 0, 255)
    assert duplicates.similarity(duplicates.spectrum(good)[None], duplicates.spectrum(bad)[None])[0][0] > duplicates.SIMILAR
    assert _find([good, bad]) == []


def test_a_category_that_looks_alike_throughout_has_no_near_copies():
    part = _part(1)
    noise = np.random.default_rng(0)
    burst = [np.clip(part + noise.normal(0, 2, part.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    assert _find(burst) == []
    assert len(_find(burst[:4] + [_part(number) for number in range(2, 10)])) == 6


def test_pairs_beyond_one_block_are_found(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    pictures = [_part(number) for number in range(10)]
    found = _find([*pictures, _jpeg(pictures[0]), _jpeg(pictures[9])])
    assert [(pair.first, pair.second) for pair in found] == [(0, 10), (9, 11)]


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))
def test_clusters_are_the_connected_components(case):
    count, links = case
    reach = np.eye(count, dtype=bool)
    for first, second in links:
        reach[first, second] = reach[second, first] = True
    for _ in range(count):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    assert duplicates.clusters(count, links) == [int(np.flatnonzero(row)[0]) for row in reach]
