"""Every augmentation keeps a batch a batch, and does to it what its name says."""

import pytest
import torch

from stages.datasets.records import Ragged
from stages.fusion.deep.maths import augment
from stages.fusion.deep.maths.augment import AUGMENTATIONS, augmented, record_of

LENGTHS = {"series": [32, 32, 32, 0, 32, 32], "audio": [16, 16, 0, 16, 16, 16], "video": [8, 0, 8, 8, 8, 8], "image": [5, 5, 3, 1, 0, 5]}
WIDTHS = {"series": 6, "audio": 20, "video": 10, "image": 7}
CLASSES = torch.tensor([0, 0, 0, 1, 2, 1])


def batch(seed: int = 0) -> dict[str, Ragged]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, lengths in LENGTHS.items():
        values = torch.randn(sum(lengths), WIDTHS[name], generator=generator)
        time = torch.cat([torch.zeros(count) if name == "image" else torch.linspace(0, 1, count) for count in lengths])
        found[name] = Ragged(values, time, torch.tensor([0, *lengths]).cumsum(0))
    return found


def view(*names: str, seed: int = 1, tokens=None) -> dict[str, Ragged]:
    return augmented(names, tokens or batch(), CLASSES, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_view_is_a_batch_of_the_same_records_and_of_the_same_modalities(name):
    given, found = batch(), view(name)
    assert list(found) == list(given)
    for one, before in zip(found.values(), given.values()):
        assert one.offsets.shape == before.offsets.shape and one.values.shape == (one.offsets[-1], before.values.shape[1])
        assert torch.equal(one.lengths > 0, before.lengths > 0) and len(one.time) == len(one.values)
        assert one.values.isfinite().all() and one.values.dtype == torch.float32 and ((one.time >= 0) & (one.time <= 1)).all()
        assert (one.time.diff()[record_of(one).diff() == 0] >= 0).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_changes_something_and_not_what_it_was_given(name):
    given = batch()
    found = [view(name, seed=seed, tokens=given) for seed in range(5)]
    assert all(torch.equal(one, other) for key, part in batch().items() for one, other in zip(part, given[key]))

    def same(one, other):
        return all(len(a) == len(b) and torch.equal(a, b) for key in one for a, b in zip(one[key], other[key]))

    assert not all(same(given, one) for one in found)
    assert same(found[0], view(name, seed=0, tokens=given)) and not all(same(found[0], one) for one in found[1:])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_batch_without_the_modality_or_without_any_token_passes_through(name):
    text = {"text": batch()["video"]}
    assert list(view(name, tokens=text)) == ["text"]
    nothing = {key: one.emptied() for key, one in batch().items()}
    assert all(len(one.values) == 0 for one in view(name, tokens=nothing).values())


def test_warping_moves_all_modalities_of_a_record_alike():
    """Sensors that read their own time, and film that shows it, still agree after the clock was bent."""
    steps = torch.linspace(0, 1, 64)
    series = Ragged(steps[:, None].repeat(1, 2), steps, torch.tensor([0, 64]))
    film = Ragged(torch.linspace(0, 1, 9)[:, None], torch.linspace(0, 1, 9), torch.tensor([0, 9]))
    found = augment.time_warp({"series": series, "video": film}, torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(1))
    seen = torch.stack([found["series"].values[(found["series"].time - moment).abs().argmin(), 0] for moment in found["video"].time])
    assert (seen - film.time).abs().max() < 0.02 < (found["video"].time - film.time).abs().max()


def test_a_lost_sensor_is_the_mean_for_the_whole_weld_and_the_others_stay():
    given, found = batch()["series"], view("channel_dropout")["series"]
    changed = (found.values != given.values).view(5, 32, 6)
    assert torch.equal(changed.all(1), changed.any(1)) and changed.any() and not changed.all(1).all(1).any()
    torch.testing.assert_close(found.values[changed.view(-1, 6)], given.values.mean(0).expand_as(given.values)[changed.view(-1, 6)])


def test_a_mask_over_sound_is_one_run_of_bands_and_one_of_tokens():
    for seed in range(8):
        changed = (view("spectrum_masks", seed=seed)["audio"].values != batch()["audio"].values).view(5, 16, 20)
        for one in changed:
            bands, stretch = one.all(0), one.all(1)
            assert bands.sum() <= 4 and stretch.sum() <= 3
            assert torch.equal(one, bands[None] | stretch[:, None])
            for run in (bands, stretch):
                assert not run.any() or torch.equal(run.nonzero()[:, 0].diff(), torch.ones(int(run.sum()) - 1, dtype=torch.long))


def test_every_photo_may_go_but_not_all_of_them():
    counts = torch.stack([view("view_drop", seed=seed)["image"].lengths for seed in range(60)])
    assert torch.equal(counts.amin(0) > 0, batch()["image"].lengths > 0)
    assert counts[:, 0].float().mean().item() == pytest.approx(3.5, abs=0.3)
    assert torch.equal(view("token_drop")["series"].offsets, batch()["series"].offsets)


def planted() -> dict[str, Ragged]:
    """Record b carries the number b in column 0; the last, defective one has a burst at .5 of the clock in all that has time."""
    found = {}
    for name, one in batch().items():
        values = one.values * 0.1
        values[:, 0] = record_of(one).float()
        if name != "image":
            values[(record_of(one) == 5) & ((one.time - 0.5).abs() < 0.1), 1:] += 30
        found[name] = one._replace(values=values)
    return found


def test_a_pasted_fault_lies_in_the_recording_of_a_good_weld_and_its_photos_come_with_it(monkeypatch):
    monkeypatch.setattr(augment, "PASTED", 1.0)
    given = planted()
    found = view("fault_paste", tokens=given)
    for name, one in found.items():
        own, before = one.values[record_of(one) == 5], given[name].values[record_of(given[name]) == 5]
        bursts = own[:, 1:].abs().amax(1) > 20
        if name == "image":
            assert torch.equal(own, before)
            continue
        assert bursts.sum() == (before[:, 1:].abs().amax(1) > 20).sum()
        assert (own[bursts, 0] == 5).all()
    series = found["series"].values[record_of(found["series"]) == 5]
    assert len(series) == 32 and series[0, 0] in (0, 1, 2) and series[-1, 0] in (0, 1, 2)
    for name, one in found.items():
        for good in range(3):
            assert torch.equal(one.values[record_of(one) == good], given[name].values[record_of(given[name]) == good])


def test_pasting_needs_a_good_weld():
    given = batch()
    found = augmented(["fault_paste"], given, torch.ones(6, dtype=torch.long), torch.Generator().manual_seed(0))
    assert all(found[name] is given[name] for name in given)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="no augmentation 'mixup'.*time_warp"):
        augment.check(["mixup"])


def test_the_angles_of_photographs_are_no_moments_to_bend_or_to_paste_at():
    """Stored views tell their angle by their time, 0 the first and 1 the last."""
    photos = batch()["image"]
    angles = torch.cat([torch.arange(count) / 4 for count in LENGTHS["image"]])
    given = {**batch(), "image": photos._replace(time=angles)}
    for seed in range(8):
        found = view("time_warp", "fault_paste", seed=seed, tokens=given)
        assert all(torch.equal(one, other) for one, other in zip(found["image"], given["image"]))
    alone = {"image": given["image"]}
    assert augment.suspect_stretch(alone, CLASSES == 0).tolist() == [0.0] * len(CLASSES)
