"""What the Perceiver learns by: losses, running mean, weights of the two kinds, and the measure that decides what is kept."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages.fusion.perceiver.learning import Objective, Source, Trainee, consistency, judged, log_weight, optimiser, ragged
from stages.fusion.perceiver.trunk import Network, Shape
from tests.fusion.perceiver.made_records import WIDTHS, drawn

SHAPE = Shape(width=16, latents=4, heads=2, blocks=1, hidden=24, ffn="dense", dropout=0.0)
PLAIN = Objective()


def trainee(objective: Objective = PLAIN, ema: float = 0.999, heavy: float = 0.0) -> Trainee:
    torch.manual_seed(0)
    return Trainee(Network(WIDTHS, SHAPE), ema, objective, 100, heavy).train()


def loss(one: Trainee, steps: int = 0) -> float:
    one.steps.fill_(steps)
    return one.loss(Source(drawn(8)).take(list(range(8))), torch.Generator().manual_seed(0)).item()


def test_the_running_mean_by_hand():
    """Its memory after t steps is (1 + t) / (10 + t) until that is above ema: .1, then 2 / 11."""
    one = trainee()
    for parameter in one.kept.parameters():
        parameter.data.fill_(1.0)
    for value, wanted in ((2.0, 0.1 * 1 + 0.9 * 2), (5.0, 2 / 11 * 1.9 + 9 / 11 * 5)):
        for parameter in one.live.parameters():
            parameter.data.fill_(value)
        one.follow()
        assert all(torch.allclose(parameter, torch.tensor(wanted)) for parameter in one.kept.parameters())


def test_the_running_mean_has_the_memory_that_is_said_in_the_end():
    one = trainee(ema=0.5)
    one.steps.fill_(1000)
    before, live = one.kept.latents.clone(), one.live.latents.data.fill_(3.0)
    one.follow()
    assert torch.allclose(one.kept.latents, (before + live) / 2)


def test_without_a_running_mean_the_last_state_is_kept():
    one = trainee(ema=0.0)
    one.live.latents.data.fill_(3.0)
    one.follow()
    assert torch.equal(one.kept.latents, one.live.latents)


def test_nothing_is_dropped_in_the_first_steps():
    full, part = trainee(Objective(modality_dropout=0.0)), trainee(Objective(modality_dropout=0.9, curriculum=0.1))
    assert loss(part, steps=9) == loss(full) != loss(part, steps=10)


def test_the_losses_by_hand():
    """Logits of 0 and log 3: cross-entropy log 2 for either label, and for label 1 -log(3/4)."""
    one = trainee(Objective(auxiliary=0.0))
    reading = one.live(drawn(2).tokens)._replace(logit=torch.tensor([0.0, math.log(3)]))
    assert one.terms(reading, torch.tensor([0.0, 1.0]))["cross_entropy"].item() == pytest.approx(
        (math.log(2) - math.log(0.75)) / 2, abs=1e-6
    )


def test_anomalous_records_count_as_much_as_is_said():
    one = trainee(heavy=math.log(4))
    reading = one.live(drawn(2).tokens)._replace(logit=torch.zeros(2))
    assert one.terms(reading, torch.tensor([0.0, 1.0]))["cross_entropy"].item() == pytest.approx((1 + 4) * math.log(2) / 2)


def test_absent_modalities_teach_their_own_heads_nothing():
    one, records = trainee(), drawn(6, missing=0.5)
    terms = one.terms(one.live(records.tokens), records.label.float())
    reading = one.live(records.tokens)
    spoilt = reading._replace(unimodal=torch.where(reading.present, reading.unimodal, 50.0))
    assert torch.equal(terms["unimodal"], one.terms(spoilt, records.label.float())["unimodal"])


def test_consistency_is_the_divergence_of_two_verdicts():
    full, seen = torch.tensor([0.3, -1.0]), torch.tensor([1.2, 0.4])
    p, q = full.sigmoid(), seen.sigmoid()
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert consistency(full, seen).item() == pytest.approx(wanted.item(), abs=1e-6)
    assert consistency(full, full).item() == pytest.approx(0, abs=1e-6)


def test_consistency_is_learnt_where_something_was_dropped():
    off, on = trainee(Objective(modality_dropout=0.6)), trainee(Objective(modality_dropout=0.6, consistency=1.0))
    assert loss(on, steps=50) > loss(off, steps=50) and loss(on) == loss(off)


def test_weight_of_anomalies_is_the_ratio_up_to_ten():
    assert log_weight(torch.tensor([0, 0, 0, 1])) == pytest.approx(math.log(3))
    assert log_weight(torch.tensor([0] * 50 + [1])) == pytest.approx(math.log(10))


def test_auroc_is_that_of_scikit_learn_with_ties():
    draw = torch.Generator().manual_seed(0)
    score, label = torch.randint(0, 6, (60,), generator=draw).float(), torch.randint(0, 2, (60,), generator=draw)
    assert judged(score, label)["val_auroc"] == pytest.approx(roc_auc_score(label, score))


def test_cross_entropy_never_outweighs_a_pair_that_is_out_of_order():
    label = torch.arange(400) % 2
    perfect = label * 2e-3 - 1e-3  # in order, and unsure of everything
    sure = label * 60.0 - 30.0
    sure[0], sure[1] = 0.1, 0.0  # one pair the wrong way round, all else certain
    assert judged(sure, label)["val_auroc"] < 1 and judged(sure, label)["val_rank_loss"] > judged(perfect, label)["val_rank_loss"]


def test_of_two_perfect_states_the_surer_one_is_kept():
    label = torch.tensor([0, 1])
    sure, unsure = judged(torch.tensor([-2.0, 2.0]), label), judged(torch.tensor([-0.1, 0.1]), label)
    worse = judged(torch.tensor([0.1, -0.1]), label)
    assert sure["val_rank_loss"] < unsure["val_rank_loss"] < worse["val_rank_loss"] and sure["val_auroc"] == unsure["val_auroc"] == 1


def test_records_of_one_kind_have_no_auroc():
    assert set(judged(torch.zeros(3), torch.zeros(3))) == {"val_cross_entropy"}


def test_batches_hold_the_records_that_were_asked_for():
    records = drawn(9)
    batch = Source(records).take([4, 1])
    wanted, found = records.take([4, 1]), ragged(batch.features, list(WIDTHS))
    assert all(torch.equal(a, b) for name in WIDTHS for a, b in zip(found[name], wanted.tokens[name])) and batch.sample_id == ["r4", "r1"]
    assert batch.features["label"].tolist() == [0, 1]


@pytest.mark.parametrize("ffn", ["moe", "dense"])
def test_no_bias_decays_so_that_the_two_kinds_of_layer_differ_in_nothing_else(ffn):
    """Biases of experts have three axes, those of a dense layer one."""
    one = Trainee(Network(WIDTHS, SHAPE._replace(ffn=ffn)), 0.999, PLAIN, 100, 0.0)
    decayed, spared = optimiser(one, 1e-3, 0.05)([*one.live.parameters()]).param_groups
    names = {id(parameter): name for name, parameter in one.live.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0)
    assert {name for name in names.values() if name.endswith("bias")} <= {names[id(part)] for part in spared["params"]}


def test_a_gradient_of_zero_is_a_step():
    one = trainee()
    adam = optimiser(one, 1e-3, 0.0)([*one.live.parameters()])
    sum((0 * parameter).sum() for parameter in one.live.parameters()).backward()
    adam.step()
    assert int(one.steps) == 1
