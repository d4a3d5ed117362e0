"""The second task is about what a view does not show, and is learnt."""

import torch

from stages.fusion.deep.maths.encoder import Padded, Standard
from stages.fusion.deep.maths.reconstruction import Reconstruction, hidden

GENERATOR = torch.Generator().manual_seed(0)


def part(batch: int = 3, steps: int = 20, channels: int = 2) -> Padded:
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[1, 10:] = False
    mask[2] = False
    values = torch.randn(batch, steps, channels, generator=torch.Generator().manual_seed(1)) * mask[..., None]
    return Padded(values, torch.linspace(0, 1, steps).repeat(batch, 1), mask)


def test_only_what_a_record_has_and_its_view_has_not_counts():
    torch.manual_seed(0)
    whole, head, standard = part(), Reconstruction(2, 5), Standard(2)
    features = torch.randn(3, 5)
    seen = whole._replace(mask=whole.mask.clone())
    seen.mask[0, 4:8] = False
    expected = (head(features, whole.time)[0, 4:8] - standard(whole.values)[0, 4:8]).square().mean()
    torch.testing.assert_close(head.loss(features, whole, seen, standard), expected)
    changed = whole._replace(values=whole.values.clone())
    changed.values[0, :4] += 7
    changed.values[2] += 7
    torch.testing.assert_close(head.loss(features, changed, seen, standard), expected)


def test_nothing_hidden_is_no_loss_and_no_gradient():
    whole, head = part(), Reconstruction(2, 5)
    loss = head.loss(torch.randn(3, 5), whole, whole, Standard(2))
    loss.backward()
    assert loss == 0 and all(bool((one.grad == 0).all()) for one in head.parameters())


def test_runs_are_hidden_whole_and_never_all_of_a_record():
    whole = part()
    for _ in range(30):
        gone = whole.mask & ~hidden(whole, 4, 0.5, GENERATOR).mask
        assert torch.equal(gone.unflatten(1, (5, 4))[0].any(1), gone.unflatten(1, (5, 4))[0].all(1))
        assert not gone[0].all() and not gone[1, :10].all() and not gone[2].any()
    assert torch.equal(hidden(whole, 4, 1.0, GENERATOR).mask, whole.mask)
    shares = torch.stack([hidden(whole, 4, 0.3, GENERATOR).mask[0].float().mean() for _ in range(200)])
    assert abs(shares.mean() - 0.7) < 0.05


def test_it_learns_a_course_that_the_features_tell():
    torch.manual_seed(0)
    height = torch.randn(32, 1)
    time = torch.linspace(0, 1, 24).repeat(32, 1)
    whole = Padded((height * torch.sin(3 * time))[..., None], time, torch.ones(32, 24, dtype=torch.bool))
    seen = hidden(whole, 4, 0.3, GENERATOR)
    head = Reconstruction(1, 4)
    features = torch.cat([height, torch.randn(32, 3)], 1)
    optimiser = torch.optim.Adam(head.parameters(), 2e-2)
    first = head.loss(features, whole, seen, Standard(1)).item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = head.loss(features, whole, seen, Standard(1))
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 * first
