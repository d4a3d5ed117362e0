"""Without labels the encoders learn to say what is hidden, from the same medium and from others, and what is hidden is not seen."""

import pytest
import torch

from stages.fusion.deep.maths.encoder import Encoding, Padded, TokenEncoder
from stages.fusion.deep.maths.learning import Source
from stages.fusion.deep.maths.pretraining import Pretraining, labelled_share, pretrain
from stages.training import Run
from tests.fusion.synthetic import records

WIDTHS = {"series": 3, "audio": 6, "image": 4}
SMALL = Encoding(width=16, heads=2, sensor_layers=1, sensor_ffn=32, patch=4, dropout=0.0)


def batch(seed: int = 0, records: int = 16) -> dict[str, Padded]:
    """A slow wave of each record's own phase, seen by all media alike."""
    generator, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    phase = 6 * torch.rand(records, 1, generator=generator)
    parts = {}
    for name, length in {"series": 48, "audio": 12, "image": 3}.items():
        time = torch.zeros(records, length) if name == "image" else torch.linspace(0, 1, length).repeat(records, 1)
        wave = torch.stack([torch.sin(4 * time + phase), torch.cos(4 * time + phase)], 2)
        values = wave @ torch.randn(2, WIDTHS[name], generator=world)
        mask = torch.ones(records, length, dtype=torch.bool)
        parts[name] = Padded(values, time, mask)
    parts["audio"].mask[0] = False
    parts["series"].mask[1] = False
    return parts


def made(seed: int = 0) -> Pretraining:
    torch.manual_seed(seed)
    return Pretraining(TokenEncoder(WIDTHS, SMALL))


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_is_hidden_is_learnt_and_the_encoders_learn_by_it():
    model = made()
    before = {name: one.clone() for name, one in model.encoder.named_parameters()}
    first = model.loss(batch(1), drawn(0)).item()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(80):
        optimiser.zero_grad()
        model.loss(batch(0, 32), drawn(step)).backward()
        optimiser.step()
    assert model.loss(batch(1), drawn(0)).item() < 0.5 * first
    changed = [name for name, one in model.encoder.named_parameters() if not torch.equal(one, before[name])]
    assert any("of_series" in name for name in changed) and any("of_audio" in name for name in changed)


@pytest.mark.parametrize("name", ["series", "audio"])
def test_no_value_that_is_hidden_reaches_the_prediction(name):
    model, parts, seen = made(), batch(), []
    model.decoders[f"of_{name}"].register_forward_hook(lambda *given: seen.append(given[2].detach()))
    model.loss(parts, drawn(3))
    chosen = []
    model._chosen, keep = lambda there, generator: chosen.append(keep(there, generator)) or chosen[-1], model._chosen
    model.loss(parts, drawn(3))
    gone = chosen[list(WIDTHS).index(name)]
    assert 0.2 < gone.float().mean() < 0.6
    wide = gone.repeat_interleave(4, 1) if name == "series" else gone
    changed = parts[name]._replace(values=parts[name].values + 5 * wide[..., None])
    model.loss({**parts, name: changed}, drawn(3))
    torch.testing.assert_close(seen[2], seen[0])
    model.loss({**parts, name: parts[name]._replace(values=parts[name].values + 5)}, drawn(3))
    assert not torch.allclose(seen[3], seen[0])


def test_photos_are_read_and_not_hidden():
    model, parts = made(), batch()
    model.loss(parts, drawn(0)).backward()
    assert model.decoders["of_image"].weight.grad is None
    assert model.encoder.adapters["of_image"].linear.weight.grad.abs().sum() > 0


def test_a_batch_of_which_nothing_can_be_hidden_is_no_loss():
    model = made()
    parts = {name: part._replace(mask=part.mask & (torch.arange(part.mask.shape[1]) < 3)) for name, part in batch().items()}
    loss = model.loss(parts, drawn(0))
    loss.backward()
    assert loss == 0


def test_a_run_of_it_is_the_same_for_the_same_seed_and_looks_at_no_label():
    given = records(0, 24, missing=0.2, tokens=24)

    def taught(seed: int, label: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        encoder = TokenEncoder(given.widths, SMALL)
        torch.manual_seed(int(label.sum()))
        before = torch.random.get_rng_state()
        pretrain(encoder, Source(given, label, list(given.widths)), 2, Run(seed=seed, quiet=True))
        assert torch.equal(before, torch.random.get_rng_state())
        return encoder.state_dict()

    one, same, other = taught(0, given.label.long()), taught(0, torch.zeros(24, dtype=torch.long)), taught(1, given.label.long())
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_share_of_the_labels_has_one_of_every_class():
    classes = torch.tensor([0] * 100 + [1] * 20 + [2] * 3)
    kept = labelled_share(classes, 0.1, drawn(0))
    assert torch.bincount(classes[kept]).tolist() == [10, 2, 1] and kept == sorted(set(kept))
    assert labelled_share(classes, 1.0, drawn(0)) == list(range(123))
    assert labelled_share(classes, 0.1, drawn(1)) != kept
    with pytest.raises(ValueError, match="share of labels"):
        labelled_share(classes, 0.0, drawn(0))
