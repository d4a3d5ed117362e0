"""The draw of a k-shot protocol: normal images only, as many of each category, nested, by seed alone."""

from hypothesis import given
from hypothesis import strategies as st

from stages.datasets.shots import references

SAMPLES = [
    {"sample_id": f"{category}/{label}/{number}", "category": category, "label": label}
    for category in ("cup", "lid")
    for label, count in ((0, 9), (1, 3))
    for number in range(count)
]


@given(st.integers(1, 12), st.integers(0, 50))
def test_as_many_normal_images_of_each_category_in_the_order_of_the_samples(shots, seed):
    drawn = references(SAMPLES, shots, seed)
    assert all(sample["label"] == 0 for sample in drawn) and [sample for sample in SAMPLES if sample in drawn] == drawn
    for category in ("cup", "lid"):
        assert sum(sample["category"] == category for sample in drawn) == min(shots, 9)


@given(st.integers(1, 8), st.integers(0, 50))
def test_fewer_shots_are_among_more_and_the_order_of_the_table_does_not_matter(shots, seed):
    ids = {sample["sample_id"] for sample in references(SAMPLES, shots, seed)}
    assert ids <= {sample["sample_id"] for sample in references(SAMPLES, shots + 1, seed)}
    assert ids == {sample["sample_id"] for sample in references(SAMPLES[::-1], shots, seed)}


def test_seeds_draw_differently_and_no_shots_are_all_images():
    assert len({tuple(sample["sample_id"] for sample in references(SAMPLES, 2, seed)) for seed in range(20)}) > 10
    assert references(SAMPLES, None, 0) == SAMPLES
