"""The budget, the loss, and what is kept."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import f1_score

from stages.fusion.deep.maths.encoder import Padded
from stages.fusion.deep.maths.heads import Heads, log_odds, log_shares, shift
from stages.fusion.deep.maths.learning import Learning, Source, Trainee, judged_by, side_by_side, thinned
from stages.training import Run
from tests.fusion.deep.made import built, welds


def test_the_score_is_the_log_odds_of_any_fault():
    logits = torch.randn(5, 4)
    normal = logits.softmax(1)[:, 0]
    torch.testing.assert_close(log_odds(logits), ((1 - normal) / normal).log())
    with pytest.raises(ValueError, match="one class"):
        log_odds(logits[:, :1])


def test_logits_that_were_learnt_from_balanced_batches_are_those_of_the_training_records():
    """Bayes: a posterior at even priors, times the true priors, is the true posterior."""
    label = torch.tensor([0] * 90 + [1] * 9 + [2] * 1)
    prior, likelihood = torch.tensor([0.9, 0.09, 0.01]), torch.tensor([0.2, 0.5, 0.3])
    even = likelihood / likelihood.sum()
    torch.testing.assert_close((even.log() + shift(label, 3)).softmax(0), prior * likelihood / (prior * likelihood).sum())
    assert shift(label, 3, balanced=False).tolist() == [0, 0, 0]
    torch.testing.assert_close(log_shares(label, 3).exp(), prior)
    assert shift(label, 4)[3].isfinite()


def test_the_projection_is_of_unit_length_and_the_shift_is_in_the_logits_alone():
    heads = Heads(8, 3)
    heads.shift.copy_(torch.tensor([1.0, 0.0, -1.0]))
    features = torch.randn(4, 8)
    torch.testing.assert_close(heads.project(features).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(heads(features) - heads.balanced(features), heads.shift.expand(4, -1))


@pytest.mark.parametrize(
    ("options", "cell"),
    [
        ({}, (3, 4)),
        ({"batch_size": 2}, (2, 1)),
        ({"batch_size": 16}, (4, 4)),
        ({"batch_size": 7}, (2, 3)),
        ({"batch_size": 32, "per_class": 8}, (4, 8)),
    ],
)
def test_a_batch_is_classes_times_records(options, cell):
    learning = Learning(**options)
    assert learning.cell == cell and learning.batch == math.prod(cell)


def test_the_rate_rises_for_500_steps_but_no_more_than_a_tenth_of_all_and_falls_as_a_cosine_or_stays():
    cosine, plateau = Learning(), Learning(schedule="plateau")
    assert cosine.rate(0, 100) == pytest.approx(0.1) and cosine.rate(9, 100) == pytest.approx((1 + math.cos(math.pi * 0.09)) / 2)
    assert cosine.rate(250, 10_000) == pytest.approx(251 / 500)
    assert cosine.rate(99, 100) < 0.001 and plateau.rate(99, 100) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": ["time_wrap"]}, "no augmentation 'time_wrap'"),
        ({"contrast": 0, "alpha": 0}, "nothing to learn"),
        ({"modality_dropout": 1.0}, "less than 1"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_what_cannot_be_learnt_by_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        Learning(**options)


def test_a_modality_is_taken_away_as_often_as_asked_but_never_all_that_there_is():
    present = torch.tensor([[True, True, True, True], [False, False, True, False], [True, False, True, False]]).repeat(2000, 1)
    left = thinned(present, 0.3, torch.Generator().manual_seed(0))
    assert left.any(1).all() and not (left & ~present).any()
    assert left[0::3].float().mean() == pytest.approx(0.7 + 0.3**4 / 4, abs=0.02)
    assert left[1::3, 2].all() and torch.equal(thinned(present, 0.0, torch.Generator()), present)


def test_views_of_other_lengths_are_padded_to_the_longest():
    short, long = (Padded(torch.ones(2, length, 3), torch.ones(2, length), torch.ones(2, length, dtype=torch.bool)) for length in (2, 4))
    both = side_by_side([{"a": short}, {"a": long}])["a"]
    assert both.values.shape == (4, 4, 3) and both.mask.sum(1).tolist() == [2, 2, 4, 4] and both.values[:2, 2:].abs().max() == 0


def test_validation_is_judged_as_scikit_learn_would():
    random = np.random.default_rng(0)
    kind, said = random.integers(0, 4, 50), random.integers(0, 5, 50)
    found = judged_by(torch.eye(5)[said], torch.from_numpy(kind))["val_macro_f1"]
    assert found == pytest.approx(f1_score(kind, said, average="macro", labels=range(4)))  # over the classes that there are
    row = judged_by(torch.eye(3)[[0, 1, 1]] * 9, torch.tensor([0, 1, 2]))
    assert row["val_accuracy"] == pytest.approx(2 / 3) and row["val_f1_loss"] == pytest.approx(1 - row["val_macro_f1"], abs=1e-5)


def trainee(learning: Learning, records) -> tuple[Trainee, Source]:
    detector = built("deep.mid")
    classes = ["normal", *sorted({one for one in records.fault if one})]
    detector.open(records.widths, 0, classes)
    kind = torch.tensor([classes.index(one or "normal") for one in records.fault])
    return Trainee(detector.network, learning, 100), Source(records, kind, list(records.widths))


def test_nothing_is_taken_away_in_the_first_tenth_of_the_steps():
    learner, source = trainee(Learning(modality_dropout=0.9), welds(0, 4, 4))
    seen = []
    learner.network.register_forward_pre_hook(
        lambda _, given: seen.append(torch.stack([part.mask.any(1) for part in given[0].values()], 1))
    )
    batch = source.take(list(range(16)))
    for step in range(12):
        learner.loss(batch, torch.Generator().manual_seed(step))
    assert all(one.all() for one in seen[:10]) and all(one.float().mean() < 0.6 for one in seen[10:])


def test_the_loss_is_contrast_and_cross_entropy_as_weighed():
    records = welds(0, 4, 3)
    learner, source = trainee(Learning(contrast=0.5, alpha=2.0, label_smoothing=0.0, modality_dropout=0.0), records)
    learner.eval()
    total = learner.loss(source.take(list(range(12))), torch.Generator()).item()
    told = learner.spent()
    assert total == pytest.approx(0.5 * told["train_contrast"] + 2 * told["train_loss"], rel=1e-5)
    assert list(told) == ["train_loss", "train_contrast", "train_accuracy"] and learner.spent()["train_loss"] == 0


def test_a_second_task_adds_its_error_where_there_are_sensors_to_hide():
    records = welds(0, 4, 3)
    learner, source = trainee(Learning(reconstruction=0.1), records)
    learner.loss(source.take(list(range(12))), torch.Generator().manual_seed(0)).backward()
    assert learner.spent()["train_reconstruction"] > 0
    assert all(one.grad.abs().sum() > 0 for one in learner.reconstruction.parameters())
    without, _ = trainee(Learning(reconstruction=0.1), records._replace(tokens={"video": records.tokens["video"]}))
    assert without.reconstruction is None


def test_the_history_shows_over_fitting():
    """Records without any mark are learnt by heart: the training accuracy rises and the validation loss with it."""
    run, noise = Run(seed=0, quiet=True), {"classes": 4, "each": 6, "strength": 0.0}
    fit = {"epochs": 30, "learning_rate": 1e-2, "classes_per_batch": 4, "per_class": 6, "modality_dropout": 0.0, "label_smoothing": 0.0}
    built("deep.mid", **fit).fit(welds(0, **noise), welds(1, **noise), run)
    first, last = run.history[0], run.history[-1]
    assert last["train_accuracy"] == 1 and last["train_loss"] < 0.2 < first["train_loss"]
    assert last["val_loss"] > 1.5 and last["val_loss"] > min(row["val_loss"] for row in run.history) + 0.2
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1"} <= set(last)
