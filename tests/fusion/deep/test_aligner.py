"""Clocks that are off are found by what all modalities see at once."""

import pytest
import torch

from stages.datasets.records import Ragged
from stages.fusion.deep.maths.aligner import Aligner, canonical, correlations, read_at, shifted

CLOCK_S = 12.0
STEPS = {"series": 200, "audio": 30, "video": 20}
WIDTHS = {"series": 6, "audio": 24, "video": 40, "image": 8}


def welds(seed: int, count: int = 40, offset_s: float = 2.0, noise: float = 0.5) -> tuple[dict[str, Ragged], dict[str, torch.Tensor]]:
    """Records of an arc that burns for some seconds and flares now and then, seen through fixed axes; the true lag of each modality."""
    generator, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)

    def drawn(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    start, end, flare = drawn(2.5, 4, count), drawn(8, 9.5, count), drawn(4.5, 7.5, count)

    def process(time: torch.Tensor) -> torch.Tensor:
        """(B, T, 2) what happens at (B, T) seconds of the weld."""
        burning = torch.sigmoid((time - start[:, None]) * 8) * torch.sigmoid((end[:, None] - time) * 8)
        return torch.stack([burning, torch.exp(-((time - flare[:, None]) ** 2) / 0.3)], 2)

    tokens, lags = {}, {}
    for name, steps in STEPS.items():
        axes = torch.randn(2, WIDTHS[name], generator=world)
        lags[name] = torch.zeros(count) if name == "series" else drawn(-offset_s, offset_s, count)
        time = torch.linspace(0, 1, steps)
        seen = process(time * CLOCK_S - lags[name][:, None]) @ axes
        values = seen + noise * torch.randn(seen.shape, generator=generator)
        tokens[name] = Ragged(values.flatten(0, 1), time.repeat(count), torch.arange(count + 1) * steps)
    views = torch.randn(3 * count, WIDTHS["image"], generator=generator)
    tokens["image"] = Ragged(views, torch.zeros(3 * count), torch.arange(count + 1) * 3)
    return tokens, lags


def primed(seed: int = 0, **options) -> Aligner:
    aligner = Aligner(WIDTHS, clock_s=CLOCK_S)
    aligner.prime(welds(seed, **options)[0])
    return aligner


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_lags_of_two_seconds_are_found_within_a_fifth_on_records_that_it_did_not_see(noise):
    tokens, truth = welds(1, noise=noise)
    aligner = primed(noise=noise)
    found = aligner.lags(tokens)
    for name in ("audio", "video"):
        assert truth[name].abs().mean() > 0.8
        assert (found[name] - truth[name]).abs().mean() < 0.2, name
    moved = aligner(tokens)
    again = aligner.lags({name: one._replace(time=one.time.clamp(0, 1)) for name, one in moved.items()})
    assert max(again[name].abs().median() for name in ("audio", "video")) < 0.2


def test_what_has_no_time_keeps_its_own_and_the_sensors_are_the_clock():
    tokens, _ = welds(1, count=5)
    moved = primed()(tokens)
    for name in ("image", "series"):
        assert torch.equal(moved[name].time, tokens[name].time)
    assert not torch.equal(moved["audio"].time, tokens["audio"].time)
    assert all(torch.equal(moved[name].values, tokens[name].values) for name in tokens)


def test_a_record_without_sensors_or_without_the_modality_has_no_lag_and_the_others_keep_theirs():
    tokens, _ = welds(1, count=6)
    aligner, kept = primed(), torch.tensor([0, 1, 0, 1, 1, 1])

    def lacking(one: Ragged, there: torch.Tensor) -> Ragged:
        length = int(one.lengths[0])
        rows = there.bool().repeat_interleave(length)
        return Ragged(one.values[rows], one.time[rows], torch.cat([torch.zeros(1, dtype=torch.long), (there * length).cumsum(0)]))

    whole = aligner.lags(tokens)
    for name in ("series", "audio"):
        part = aligner.lags({**tokens, name: lacking(tokens[name], kept)})
        torch.testing.assert_close(part["audio"], whole["audio"] * kept, atol=1e-4, rtol=1e-4)
    nothing = aligner({name: one.emptied() for name, one in tokens.items()})
    assert all(len(one.time) == 0 for one in nothing.values())


def test_a_modality_that_falls_when_the_current_rises_is_aligned_too():
    steps, rise = torch.linspace(0, 1, 100), torch.linspace(3, 6, 8)[:, None]
    late = torch.tensor([1.5, -1.0] * 4)[:, None]
    up = torch.sigmoid((steps * CLOCK_S - rise) * 5)
    down = 1 - torch.sigmoid((steps * CLOCK_S - late - rise) * 5)
    tokens = {
        name: Ragged(values.flatten()[:, None], steps.repeat(8), torch.arange(9) * 100)
        for name, values in {"series": up, "sound": down}.items()
    }
    aligner = Aligner({"series": 1, "sound": 1}, clock_s=CLOCK_S)
    aligner.prime(tokens)
    assert (aligner.lags(tokens)["sound"] - late[:, 0]).abs().max() < 0.2


def test_where_nothing_agrees_the_lag_is_small():
    tokens, _ = welds(1)
    for name in ("audio", "video"):
        tokens[name] = tokens[name]._replace(values=torch.zeros_like(tokens[name].values))
    found = primed().lags(tokens)
    assert all(bool((lag.abs() < 1e-4).all()) for lag in found.values())


def test_records_of_one_kind_alone_prime_nothing():
    tokens, _ = welds(1, count=4)
    aligner = Aligner(WIDTHS, clock_s=CLOCK_S)
    aligner.prime({**tokens, "series": tokens["series"].emptied()})
    assert all(bool((lag.abs() < 1e-4).all()) for lag in aligner.lags(tokens).values())


def test_a_loss_reaches_the_envelopes_through_the_lag():
    tokens, truth = welds(1, count=6)
    aligner = primed()
    loss = (aligner.lags(tokens)["audio"] - truth["audio"]).abs().mean()
    loss.backward()
    assert aligner.theirs["of_audio"].grad.abs().sum() > 0 and aligner.ours["of_audio"].grad.abs().sum() > 0


def test_the_state_is_the_whole_aligner():
    tokens, _ = welds(1, count=5)
    aligner, other = primed(), Aligner(WIDTHS, clock_s=CLOCK_S)
    other.load_state_dict(aligner.state_dict())
    assert torch.equal(other.lags(tokens)["video"], aligner.lags(tokens)["video"])


def test_reading_between_tokens_is_numpys_interpolation():
    import numpy as np

    random = np.random.default_rng(0)
    times = [np.sort(random.random(count)) for count in (4, 1, 7)]
    values = [random.standard_normal((len(time), 2)) for time in times]
    one = Ragged(torch.tensor(np.concatenate(values)), torch.tensor(np.concatenate(times)), torch.tensor([0, 4, 4, 5, 12]))
    wanted = np.linspace(-0.3, 1.3, 33)
    found = read_at(one, one.values, torch.tensor(wanted)).numpy()
    assert (found[1] == 0).all()
    for place, time, value in zip((0, 2, 3), times, values):
        expected = np.stack([np.interp(wanted, time, value[:, column]) for column in range(2)], 1)
        np.testing.assert_allclose(found[place], expected, atol=1e-9)


def test_correlations_are_pearsons_at_every_lag():
    import numpy as np

    random = np.random.default_rng(1)
    theirs, ours = random.standard_normal((2, 14, 3)), random.standard_normal((2, 10, 3))
    found = correlations(torch.tensor(theirs), torch.tensor(ours)).numpy()
    for lag in range(5):
        for channel in range(3):
            expected = np.corrcoef(theirs[1, lag : lag + 10, channel], ours[1, :, channel])[0, 1]
            assert found[1, lag, channel] == pytest.approx(expected, abs=1e-9)


def test_canonical_correlations_are_the_roots_of_hotellings_equation():
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(400, 1, generator=generator)
    one = torch.randn(400, 4, generator=generator) + shared * torch.tensor([1.0, 0, 0.5, 0])
    other = torch.randn(400, 3, generator=generator) + shared * torch.tensor([0, 1.0, 0])
    theirs, ours, strength = canonical(one, other, 2)
    whole = np.cov(torch.cat([one, other], 1).double().numpy().T)
    product = np.linalg.solve(whole[:4, :4], whole[:4, 4:]) @ np.linalg.solve(whole[4:, 4:], whole[4:, :4])
    expected = np.sqrt(np.sort(np.linalg.eigvals(product).real)[::-1][:2])
    np.testing.assert_allclose(strength.numpy(), expected, atol=2e-3)
    for number in range(2):
        found = torch.corrcoef(torch.stack([(one @ theirs)[:, number], (other @ ours)[:, number]]))[0, 1]
        assert found == pytest.approx(expected[number], abs=2e-3)


def test_shifting_moves_times_by_record():
    one = Ragged(torch.zeros(4, 1), torch.tensor([0.0, 0.5, 0.0, 0.0]), torch.tensor([0, 2, 4]))
    assert shifted(one, torch.tensor([0.25, 0.25])).time.tolist() == [0.25, 0.75, 0, 0]


def test_without_sensors_there_is_nothing_to_align_to():
    with pytest.raises(ValueError, match="'series', which the records do not have: they have audio"):
        Aligner({"audio": 3})
    with pytest.raises(ValueError, match="clock_s"):
        Aligner(WIDTHS, clock_s=2.0)
