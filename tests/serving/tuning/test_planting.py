"""Planted defects: in their place, to be seen, and the same again."""

import pytest
import torch

from stages.seed import torch_generator
from stages.serving.tuning.planting import COPIES, EXTENTS, KINDS, VISIBLE, Plan, plan, plant


@pytest.fixture
def images():
    return torch.randint(90, 130, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extent", EXTENTS)
def test_pixels_change_inside_the_mask_and_nowhere_else(images, kind, extent):
    before = images.clone()
    for number in range(20):
        copy, mask = plant(images, Plan(1, kind, extent), torch_generator(0, number))
        changed = (copy != images[1]).any(dim=0)
        assert copy.dtype == torch.uint8 and mask.any() and torch.equal(changed, mask)
        reach = 64 * extent * (2 if kind == "scratch" else 1) + 3
        rows, columns = mask.nonzero().T
        assert rows.max() - rows.min() <= reach and columns.max() - columns.min() <= reach
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_plants_the_same_and_another_seed_another(images, kind):
    first, again, other = (plant(images, Plan(0, kind, 1 / 6), torch_generator(seed, "x")) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_can_be_seen_also_where_most_of_the_image_is_empty(kind):
    """A piece of background pasted on background is no defect: it is drawn anew."""
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 8:56, 8:56] = 120
    images[:, :, 24:40, 24:40] = 200
    seen = 0
    for number in range(30):
        copy, mask = plant(images, Plan(0, kind, 1 / 6), torch_generator(0, number))
        seen += bool(mask.any()) and (copy.float() - images[0].float()).abs().mean(dim=0)[mask].mean() >= VISIBLE
    assert seen >= 29


def test_a_copy_of_each_kind_and_size_for_each_of_few_images_and_all_kinds_in_turn_for_many():
    few = plan(5)
    assert len(few) == len(set(few)) == 30
    many = plan(200)
    assert len(many) == COPIES and len({planned.image for planned in many}) == COPIES
    assert {(kind, extent): sum((one.kind, one.extent) == (kind, extent) for one in many) for kind in KINDS for extent in EXTENTS} == {
        (kind, extent): COPIES // 6 for kind in KINDS for extent in EXTENTS
    }
