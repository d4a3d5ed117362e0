"""Answers that differ, what is made of them by hand, and that dropout is on only while it is asked for."""

import math

import pytest
import torch
from torch import Tensor, nn

from stages import fusion
from stages.datasets.records import Records, RecordSet
from stages.fusion.deep.maths.uncertainty import anomalous, dropping, ensemble, mc_dropout, uncertainty
from stages.fusion.detector import Classified, RecordDetector
from stages.training import Run
from stages.types import Refusal
from tests.fusion.synthetic import records

TRAIN, TEST = records(0, 60, missing=0), records(1, 40, missing=0)


class Told(RecordDetector):
    """A network with every kind of layer that drops, and one that counts what it sees in training."""

    telling = True

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        torch.manual_seed(seed)
        width = widths["text"]
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, self.dropout, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, self.dropout, batch_first=True)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(self.dropout)
        self.head = nn.Linear(width, len(self.classes))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        pass

    def tell(self, records: Records) -> Classified:
        one = records.tokens["text"]
        values = one.values[one.offsets[:-1]][:, None]
        values = self.layer(values)
        values = self.attention(values, values, values, need_weights=False)[0][:, 0]
        return Classified(self.head(self.drop(self.norm(values))), nn.functional.normalize(values, dim=1))


def told(dropout: float = 0.5, seed: int = 0) -> Told:
    return Told(dropout).fit(TRAIN, TRAIN, Run(seed=seed, quiet=True))


def test_passes_differ_are_drawn_by_the_seed_and_leave_everything_as_it_was():
    detector = told()
    before, state = detector.classify(TEST).logits, {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    generator = torch.random.get_rng_state()
    answers = mc_dropout(detector, TEST, passes=6)
    assert answers.shape == (6, 40, 4)
    torch.testing.assert_close(answers.sum(2), torch.ones(6, 40, dtype=torch.float64))
    assert all((answers[0] - answers[number]).abs().max() > 0.01 for number in range(1, 6))
    assert torch.equal(answers, mc_dropout(detector, TEST, passes=6)) and torch.equal(answers[:2], mc_dropout(detector, TEST, passes=2))
    assert not torch.equal(answers, mc_dropout(detector, TEST, passes=6, seed=1))
    assert torch.equal(detector.classify(TEST).logits, before) and not any(module.training for module in detector.modules())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())


def test_each_kind_of_layer_drops_and_batch_statistics_stay_those_that_were_learnt():
    detector = told()
    with dropping(detector):
        assert detector.layer.training and detector.attention.training and detector.drop.training
        assert detector.layer.self_attn.training and detector.layer.dropout1.training
        assert not detector.norm.training and not detector.training
    values = torch.randn(3, 1, 8)
    for part in (detector.layer, lambda given: detector.attention(given, given, given)[0], detector.drop):
        with dropping(detector):
            torch.manual_seed(0)
            one = part(values)
            torch.manual_seed(1)
            assert not torch.equal(one, part(values))


def test_dropout_is_off_again_when_the_pass_fails():
    detector = told()
    with pytest.raises(RuntimeError, match="broken"), dropping(detector):
        raise RuntimeError("broken")
    assert not any(module.training for module in detector.modules())


def test_the_mean_of_many_passes_settles():
    detector = told(0.2)
    one, other = (mc_dropout(detector, TEST, passes=200, seed=seed).mean(0) for seed in (0, 1))
    assert (one - other).abs().max() < 0.1 and (one - other).abs().mean() < 0.02


def test_by_hand_two_who_are_sure_of_different_things_disagree_and_two_who_are_both_unsure_do_not():
    sure = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]])
    found = uncertainty(sure)
    assert found.probability.tolist() == [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]
    assert found.entropy.tolist() == pytest.approx([math.log(2), math.log(2), 0])
    assert found.disagreement.tolist() == pytest.approx([math.log(2), 0, 0])
    assert anomalous(found.probability).tolist() == [0.5, 0.5, 0.0]


def test_disagreement_is_the_mean_divergence_from_the_mean():
    answers = torch.rand(5, 30, 4, dtype=torch.float64).softmax(2)
    mean = answers.mean(0)
    by_hand = (answers * (answers / mean).log()).sum(2).mean(0)
    torch.testing.assert_close(uncertainty(answers).disagreement, by_hand)


def test_seeds_of_a_row_are_answers_and_their_mean_errs_less_than_they_do_on_the_average():
    fits = [fusion.build("classical.forest", {"trees": 5}, at=()).fit(TRAIN, TRAIN, Run(seed=seed, quiet=True)) for seed in range(4)]
    answers = ensemble(fits, TEST)
    assert answers.shape == (4, 40, 4)
    truth = torch.nn.functional.one_hot(torch.tensor([fits[0].classes.index(fault or "normal") for fault in TEST.fault]), 4)

    def brier(probability: Tensor) -> float:
        return float((probability - truth).square().sum(-1).mean())

    assert brier(uncertainty(answers).probability) < sum(map(brier, answers)) / 4 - 1e-3


def test_what_has_no_dropout_tells_no_classes_or_other_classes_is_refused():
    with pytest.raises(Refusal, match="no dropout"):
        mc_dropout(told(0.0), TEST)
    knn = fusion.build("classical.knn", {}, at=()).fit(TRAIN, TRAIN, Run(seed=0, quiet=True))
    with pytest.raises(Refusal, match="tells no classes"):
        ensemble([knn], TEST)
    fewer = TRAIN.take([place for place, fault in enumerate(TRAIN.fault) if fault != "text"])
    with pytest.raises(Refusal, match="same classes"):
        ensemble([told(), Told().fit(fewer, fewer, Run(seed=0, quiet=True))], TEST)
