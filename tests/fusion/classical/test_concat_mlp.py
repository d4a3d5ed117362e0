"""The small network, and what hiding modalities from it does."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from stages import fusion
from stages.fusion.classical.concat_mlp import thinned
from stages.seed import torch_generator
from stages.training import Run
from tests.fusion.synthetic import records

TRAIN, VAL = records(0, 90), records(1, 45)


def fit(**options):
    run = Run(seed=0, quiet=True)
    detector = fusion.build("classical.concat_mlp", {"hidden": 16, "learning_rate": 1e-2, "patience": 4} | options, at=()).fit(
        TRAIN, VAL, run
    )
    return detector, run.history


def test_the_state_that_is_kept_is_the_one_of_least_loss_on_val():
    detector, history = fit(epochs=40)
    losses = [row["val_loss"] for row in history]
    found = binary_cross_entropy_with_logits(detector.score(VAL), VAL.label.float()).item()
    assert abs(found - min(losses)) < 1e-6 < losses[-1] - min(losses) and len(losses) < 40


def test_modalities_are_hidden_at_random_but_never_all_and_none_comes_back():
    present = torch.rand(4000, 3, generator=torch_generator(0)) < 0.7
    present[present.sum(1) == 0, 1] = True
    kept = thinned(present, 0.4, torch_generator(1))
    assert not (kept & ~present).any() and kept.any(1).all()
    assert torch.equal(thinned(present, 0.0, torch_generator(1)), present)
    full = present.all(1)
    share = kept[full].float().mean(0)
    assert (share - (0.6 + 0.4**3 / 3)).abs().max() < 0.03  # hidden with 0.4; where all were, one of three comes back


def test_hiding_modalities_in_training_halves_the_loss_where_one_of_several_that_show_the_same_is_missing_later():
    train, test = (records(seed, 120, missing=0, faint=1.0, strength=5) for seed in (2, 3))

    def loss(chance: float) -> float:
        options = {"hidden": 16, "learning_rate": 1e-2, "epochs": 30, "modality_dropout": chance}
        detector = fusion.build("classical.concat_mlp", options, at=()).fit(train, train.take([]), Run(seed=0, quiet=True))
        left = [test.only([name for name in test.tokens if name != absent]) for absent in test.tokens]
        return sum(binary_cross_entropy_with_logits(detector.score(one), test.label.float()).item() for one in left)

    assert loss(0.3) < 0.5 * loss(0.0)


def test_the_seed_draws_the_network():
    one, same, other = (fusion.build("classical.concat_mlp", {}, at=()).open({"text": 3}, seed).network[0].weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
