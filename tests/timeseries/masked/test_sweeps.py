import pytest
import torch

from stages.timeseries.masked import sweeps
from stages.timeseries.masked.network import Network, Shape

SHAPE = Shape(steps=20, variables=2, patches=5, width=8, heads=2, encoder_layers=1, teacher_layers=1, feedforward=16)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(SHAPE).eval()


def series(steps: int) -> torch.Tensor:
    return torch.randn(steps, 2, generator=torch.Generator().manual_seed(steps))


def plain(network: Network, values: torch.Tensor, stride: int) -> torch.Tensor:
    """Squared errors as they are defined: each window, each patch hidden alone, one forward pass each."""
    total, count = torch.zeros_like(values), torch.zeros(len(values), 1)
    starts = list(range(0, len(values) - 19, stride))
    starts += [len(values) - 20] if starts[-1] != len(values) - 20 else []
    for start in starts:
        for patch in range(5):
            mask = torch.zeros(1, 5, dtype=torch.bool)
            mask[0, patch] = True
            window = values[None, start : start + 20]
            place = slice(4 * patch, 4 * patch + 4)
            total[start + place.start : start + place.stop] += (window - network(window, mask).teacher)[0, place].square().detach()
            count[start + place.start : start + place.stop] += 1
    return total / count


@pytest.mark.parametrize("stride", [1, 7, 20])
def test_as_many_passes_as_patches_are_the_definition(network, stride):
    values = series(53)
    found = sweeps.errors(network, values, sweeps.all_patches(53, network, stride, 5))
    torch.testing.assert_close(found.squared, plain(network, values, stride), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [20, 21, 47, 60])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_hiding_the_middle_still_asks_about_every_step(network, steps, count):
    stride = 4 * count
    plan = sweeps.centred(steps, network, stride, count)
    assert all(column.isfinite().all() for column in sweeps.errors(network, series(steps), plan))


def test_the_last_patch_of_each_window_is_scored_at_its_end(network):
    values = series(40)
    found = sweeps.last_errors(network, values, 1, 1)
    mask = torch.tensor([[False] * 4 + [True]])
    for step in (19, 25, 39):
        window = values[None, step - 19 : step + 1]
        expected = (window - network(window, mask).teacher)[0, -4:].square().mean(0)
        torch.testing.assert_close(found.squared[step], expected, rtol=1e-4, atol=1e-6)


def test_with_a_stride_a_step_takes_the_next_end(network):
    every, some = (sweeps.last_errors(network, series(40), stride, 1).squared for stride in (1, 4))
    torch.testing.assert_close(some[5:9], every[8].expand(4, -1))
    torch.testing.assert_close(some[37:], every[39].expand(3, -1))


def test_a_suspicious_step_changes_no_other_step(network):
    values = series(60)
    changed = values.clone()
    changed[30:34] += 5  # within one patch of every window of this stride
    suspicious = torch.zeros(60, dtype=torch.bool)
    suspicious[30:34] = True
    plan = [sweep._replace(starts=sweep.starts[sweep.starts % 2 == 0]) for sweep in sweeps.all_patches(60, network, 2, 5)]
    plain, blind = ([sweeps.errors(network, one, plan, suspected).signed for one in (values, changed)] for suspected in (None, suspicious))
    other = torch.ones(60, dtype=torch.bool)
    other[30:34] = False
    torch.testing.assert_close(blind[0][other], blind[1][other])
    assert not torch.allclose(plain[0][other], plain[1][other])


def test_where_all_is_suspicious_a_quarter_stays_in_sight(network):
    found = list(sweeps._batches(network, sweeps.all_patches(40, network, 20, 5), torch.ones(40, dtype=torch.bool)))
    assert all((mask.sum(1) == 4).all() for *_, mask in found)
