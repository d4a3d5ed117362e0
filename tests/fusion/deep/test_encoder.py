"""Tokens of all modalities as one sequence: what is masked, absent or late changes nothing that it should not."""

import pytest
import torch
from pydantic import ValidationError

from stages.fusion.deep.maths.encoder import Encoding, Padded, SensorEncoder, TokenEncoder, mean, padded, time_code
from tests.fusion.deep.made import LENGTHS, WIDTHS, welds

SIZES = Encoding(width=16, heads=2, sensor_layers=2, sensor_ffn=32, patch=4)


def encoder(**options) -> TokenEncoder:
    return TokenEncoder(WIDTHS, SIZES.model_copy(update=options)).eval()


def test_the_sensors_of_the_seed_become_32_tokens():
    part = Padded(torch.randn(2, 256, 6), torch.linspace(0, 1, 256).expand(2, -1), torch.ones(2, 256, dtype=torch.bool))
    tokens = SensorEncoder().eval()(part)
    assert tokens.values.shape == (2, 32, 256) and tokens.mask.all() and tokens.values.isfinite().all()
    torch.testing.assert_close(tokens.time[0, 0], torch.linspace(0, 1, 256)[:8].mean())


def test_the_angles_of_photographs_are_not_put_on_a_clock():
    aligned = encoder(align=True)
    assert aligned.aligner.names == ["video", "audio"] and encoder(align=False).aligner is None
    photos = {name: WIDTHS[name] for name in ("image", "series")}
    assert TokenEncoder(photos, SIZES.model_copy(update={"align": True})).aligner is None


def test_padding_and_what_stands_in_it_change_no_token():
    sensors = SensorEncoder(4, 16, 4, 1, 2, 32).eval()
    values, time = torch.randn(1, 9, 4), torch.linspace(0, 1, 9)[None]
    short = sensors(Padded(values, time, torch.ones(1, 9, dtype=torch.bool)))
    grown = Padded(torch.cat([values, torch.full((1, 11, 4), 9.0)], 1), torch.cat([time, torch.ones(1, 11)], 1), torch.arange(20)[None] < 9)
    long = sensors(grown)
    assert long.mask.tolist() == [[True] * 3 + [False] * 2]
    torch.testing.assert_close(long.values[:, :3], short.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(long.time[:, :3], short.time)


def test_a_record_without_sensors_is_finite_and_its_gradient_is():
    sensors = SensorEncoder(4, 16, 4, 1, 2, 32)
    found = sensors(Padded(torch.zeros(2, 8, 4), torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bool)))
    found.values.sum().backward()
    assert found.values.isfinite().all() and not found.mask.any()
    assert all(one.grad.isfinite().all() for one in sensors.parameters() if one.grad is not None)


def test_every_modality_has_a_token_even_where_a_record_lacks_it():
    given, reads = welds(0, 3, 2), encoder()
    lacking = given.only(["video"])
    whole, left = (reads(reads.padded(one.tokens)) for one in (given, lacking))
    assert whole.present.all() and left.present.tolist() == [[True, False, False, False]] * 6
    assert left.mask.sum(1).tolist() == [LENGTHS["video"] + 3] * 6
    torch.testing.assert_close(left.tokens[:, left.spans["video"]], whole.tokens[:, whole.spans["video"]])
    absent = reads.absent["of_audio"] + reads.embedding["of_audio"]
    torch.testing.assert_close(left.tokens[:, left.spans["audio"]][:, 0], absent.expand(6, -1))


def test_long_sequences_are_read_at_even_places_the_first_among_them():
    one = welds(0, 2, 1).tokens["series"]
    found = padded(one, 7)
    torch.testing.assert_close(found.values[1], one.values[21:][::3])
    assert found.mask.all() and padded(one, 100).mask.shape == (2, 21)


def test_views_can_be_one_token_and_be_few():
    given = welds(0, 3, 1)
    each, middle, most, two = (encoder(**options) for options in ({}, {"views": "mean"}, {"views": "max"}, {"max_views": 2}))
    lengths = [reads(reads.padded(given.tokens)).spans["image"] for reads in (each, middle, most, two)]
    assert [span.stop - span.start for span in lengths] == [3, 1, 1, 2]
    part = each.padded(given.tokens)["image"]
    projected = middle.adapters["of_image"](part).values
    for reads, said in ((middle, projected.mean(1)), (most, middle.adapters["of_image"](part).values.amax(1))):
        reads.load_state_dict(middle.state_dict())
        token = reads(reads.padded(given.tokens)).tokens[:, lengths[1]][:, 0]
        torch.testing.assert_close(token, said + reads.embedding["of_image"] + reads.time(time_code(part.time.mean(1))))


def test_what_is_learnt_from_sets_the_units():
    """Each dimension by itself; one that never changes keeps its own."""
    given, reads = welds(0, 4, 4), encoder()
    image = given.tokens["image"]
    odd = given._replace(
        tokens=given.tokens | {"image": image._replace(values=torch.cat([1e3 * image.values[:, :7], image.values[:, 7:] * 0 + 5], 1))}
    )
    reads.standardise(iter([odd.take(range(8)), odd.take(range(8, 16))]))
    values = reads.adapters["of_image"].standard(odd.tokens["image"].values)
    torch.testing.assert_close(values[:, :7].mean(0), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(values[:, :7].std(0, correction=0), torch.ones(7), atol=1e-4, rtol=0)
    assert values[:, 7].abs().max() == 0


def test_a_mean_over_nothing_is_0():
    assert mean(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValidationError, match="multiple of heads, got 10 and 4"):
        Encoding(width=10, heads=4)
