"""Tiles: what is cut comes back exactly, for any size and overlap; every pixel is seen; neighbours that disagree meet in a slope."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets.tiles import Grid, in_tiles
from stages.errors import UserError


@st.composite
def grids(draw):
    tile = draw(st.integers(4, 24))
    height, width = draw(st.integers(tile, 70)), draw(st.integers(tile, 70))
    return Grid.over((height, width), tile, draw(st.integers(0, tile - 1)))


@settings(deadline=None, max_examples=40)
@given(grids(), st.integers(0, 2**31))
def test_what_is_cut_comes_back_exactly(grid, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, grid.height, grid.width, generator=generator) * 10 ** torch.randint(-6, 7, (1,), generator=generator)
    pixels = torch.randint(0, 256, (2, 3, grid.height, grid.width), generator=generator).to(torch.uint8)
    for whole in (maps, pixels, pixels[:, 0] > 127):
        tiles = grid.cut(whole)
        assert tiles.shape == (2 * grid.count, *whole.shape[1:-2], grid.tile, grid.tile)
        assert torch.equal(grid.merge(tiles), whole)


@settings(deadline=None, max_examples=40)
@given(grids())
def test_tiles_lie_inside_and_overlap_at_least_as_asked(grid):
    for starts, length in (
        (sorted({top for top, _ in grid.corners}), grid.height),
        (sorted({left for _, left in grid.corners}), grid.width),
    ):
        assert starts[0] == 0 and starts[-1] == length - grid.tile
        assert all(after - before <= grid.tile - grid.overlap for before, after in itertools.pairwise(starts))


def test_sizes_that_divide_give_the_fewest_tiles():
    assert Grid.over((2048, 2048), 256, 0).count == 64
    assert Grid.over((2048, 1024), 256, 32).corners[:2] == [(0, 0), (0, 192)]


def test_tiles_that_disagree_meet_in_a_slope_and_not_in_a_step():
    grid = Grid.over((16, 40), 16, 8)
    assert grid.count == 4
    values = torch.arange(4.0)[:, None, None].expand(4, 16, 16)  # each tile says its own number
    merged = grid.merge(values)[0]
    assert merged[:, :8].eq(0).all() and merged[:, 32:].eq(3).all()
    steps = merged.diff(dim=1)
    assert steps.min() >= 0 and steps.max() < 0.25  # plain averaging would jump by 0.5


def test_one_tile_is_the_whole_canvas():
    grid = Grid.over((20, 20), 20, 5)
    assert grid.corners == [(0, 0)] and grid.names("a/b.png") == ["a/b.png#0"]


@pytest.mark.parametrize(
    ("canvas", "tile", "overlap", "said"),
    [((100, 30), 32, 0, "smaller than image_size"), ((64, 64), 32, 32, "less than"), ((64, 64), 32, -1, "at least 0")],
)
def test_a_grid_that_cannot_be_is_refused_with_what_to_do(canvas, tile, overlap, said):
    with pytest.raises(UserError, match=said):
        Grid.over(canvas, tile, overlap)


def test_an_entry_in_tiles_has_a_name_of_its_own():
    name, entry = in_tiles("pixels", {"kind": "pixels", "image_size": 224}, 2048)
    assert name == "pixels-in-2048x2048" and entry == {"kind": "pixels", "image_size": 224, "canvas": [2048, 2048], "overlap": 28}
    assert in_tiles("pixels", {"image_size": 64}, (100, 200), 5)[1]["overlap"] == 5


def test_a_record_without_tiles_has_no_grid():
    grid = Grid.over((64, 96), 32, 4)
    assert Grid.of({"tiles": grid._asdict()}) == grid and Grid.of({"entry": {}}) is None
