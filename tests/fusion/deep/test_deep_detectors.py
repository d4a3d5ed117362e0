"""What all deep detectors can do beside the contract of tests/fusion/test_detectors.py."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from stages import fusion
from stages.fusion.deep.maths.detector import distance
from stages.fusion.detector import class_of
from stages.training import Run
from stages.types import Refusal
from tests.fusion.deep.made import NETWORKS, TINY, built, welds

QUICK = {"epochs": 6, "learning_rate": 1e-2, "classes_per_batch": 4, "per_class": 4}
TRAIN, VAL, TEST = welds(0, 4, 12, missing=0.2), welds(1, 4, 6, missing=0.2), welds(2, 4, 10, missing=0.2)


def test_late_fusion_puts_each_network_on_a_scale_of_its_own_by_validation_records():
    late = built("deep.late", **QUICK).fit(TRAIN, VAL, Run(seed=0, quiet=True))
    scales = torch.stack([one.scale for one in late.members.values()])
    assert (scales != 1).all() and len(scales.unique()) > 2
    before = late.score(TEST)
    for one in late.members.values():
        one.scale.fill_(1.0)
    assert not torch.allclose(late.score(TEST), before)


@pytest.fixture(scope="module")
def overfitted():
    """24 records, two of each of twelve classes, learnt by heart."""
    records, run = welds(0, classes=12, each=2), Run(seed=0, quiet=True)
    learning = {"epochs": 80, "learning_rate": 5e-3, "classes_per_batch": 12, "per_class": 2, "label_smoothing": 0, "modality_dropout": 0}
    options = {**TINY, **NETWORKS["deep.cross_attention"], "encoding": {**TINY["encoding"], "dropout": 0}, "learning": learning}
    detector = fusion.build("deep.cross_attention", options, at=()).fit(records, records.take([]), run)
    return detector, records, run.history


def test_24_records_are_learnt_by_heart(overfitted):
    """The cross-entropy goes to 0. The contrast cannot: of each anchor's three positives every one gets a third, so its least is log 3."""
    detector, records, history = overfitted
    assert torch.equal(detector.classify(records).logits.argmax(1), class_of(records, detector.classes))
    assert history[-1]["train_accuracy"] == 1 and history[-1]["train_loss"] < 0.02
    assert history[-1]["train_contrast"] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.05)


def test_its_own_neighbours_name_every_record_with_k_1_or_weights_by_distance(overfitted):
    detector, records, _ = overfitted
    features, kind = detector.classify(records).features.double(), class_of(records, detector.classes)
    for options in ({"n_neighbors": 1}, {"n_neighbors": 5, "weights": "distance"}):
        assert KNeighborsClassifier(**options).fit(features, kind).score(features, kind) == 1, options


def test_five_neighbours_by_majority_cannot_be_counted_on_with_two_records_a_class():
    """Two of the five are of the right class; where two of the other three are of one class as well it is a tie, however well the classes lie apart."""
    place = torch.arange(12).repeat_interleave(2)
    features = torch.stack([place.double(), torch.arange(24) % 2 * 0.001], 1)  # pairs in a row: the nearest strangers are a pair
    assert KNeighborsClassifier(5).fit(features, place).score(features, place) < 1
    assert KNeighborsClassifier(5, weights="distance").fit(features, place).score(features, place) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_and_unit_features_of_records_it_has_not_seen(name):
    detector = built(name, **QUICK).fit(TRAIN, VAL, Run(seed=0, quiet=True))
    told = detector.classify(TEST)
    assert told.logits.shape == (40, 4) and detector.classes == ["normal", "fault_01", "fault_02", "fault_03"]
    torch.testing.assert_close(told.features.norm(dim=1), torch.ones(40))
    assert float((told.logits.argmax(1) == class_of(TEST, detector.classes)).double().mean()) > 0.8
    probability = told.logits.softmax(1)
    if name != "deep.late":  # which weighs scores and classes each by themselves
        torch.testing.assert_close(detector.score(TEST), (1 - probability[:, 0]).log() - probability[:, 0].log(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_from_normal_records_alone_it_scores_by_distance_and_tells_nothing(name):
    """A fault far from everything that was seen lies farther from the bank."""
    good, far = welds(0, 1, 48), welds(1, 2, 20, strength=6.0)
    near = welds(2, 1, 20)
    options = {"normal_only": True, "epochs": 6, "learning_rate": 3e-3}
    detector = built(name, **options).fit(good, near.take([]), Run(seed=0, quiet=True))
    assert not detector.supervised and not detector.telling and detector.nothing is None
    faults = far.take(list(range(20, 40)))
    score = torch.cat([detector.score(near), detector.score(faults)])
    assert score.isfinite().all() and roc_auc_score([0] * 20 + [1] * 20, score) > 0.7
    with pytest.raises(TypeError, match="normal records alone"):
        detector.classify(near)


def test_distance_is_the_mean_cosine_distance_to_the_five_nearest():
    bank, features = (torch.nn.functional.normalize(torch.randn(count, 4), dim=1) for count in (9, 3))
    each = [sorted(1 - float(one @ other) for other in bank)[:5] for one in features]
    torch.testing.assert_close(distance(features, bank), torch.tensor([sum(five) / 5 for five in each]))
    assert distance(features, bank[:2]).shape == (3,)


@pytest.mark.parametrize("name", ["deep.cross_attention", "deep.gated"])
def test_attention_is_a_share_of_each_modality(name):
    detector = built(name, **QUICK | {"epochs": 1}).fit(TRAIN, VAL, Run(seed=0, quiet=True))
    share = detector.attention(TEST)
    assert share.shape == (40, 4) and not share.requires_grad
    torch.testing.assert_close(share.sum(1), torch.ones(40))
    if name == "deep.gated":
        assert (share[~TEST.present] == 0).all()


def test_a_fit_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["training"] == "of_series" and row["epoch"] == 0:
            raise Stop

    options = QUICK | {"epochs": 2, "reconstruction": 0.1, "augment": ["token_drop"], "pretrain_epochs": 1}
    whole = built("deep.late", **options).fit(TRAIN, VAL, Run(seed=0, quiet=True))
    with pytest.raises(Stop):
        built("deep.late", **options).fit(TRAIN, VAL, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0, heard=stop))
    again = Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0)
    resumed = built("deep.late", **options).fit(TRAIN, VAL, again)
    assert torch.equal(resumed.score(TEST), whole.score(TEST))
    assert [row["training"] for row in again.history if row["training"] == "of_series"] == ["of_series"] * 2


def test_one_modality_says_the_share_of_train_of_a_record_that_lacks_it():
    records = TRAIN.take([*range(12), *range(12, 48, 3)])  # half of them normal
    single = fusion.build("deep.unimodal", {**TINY, "modality": "series", "learning": QUICK}, at=())
    single.fit(records, VAL, Run(seed=0, quiet=True))
    assert single.nothing == pytest.approx(0.0, abs=1e-6)
    lacking = TEST.only(["video"])
    assert single.score(lacking).tolist() == [single.nothing] * 40
    torch.testing.assert_close(single.classify(lacking).logits.softmax(1)[0], torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]))


def test_learnt_from_normal_records_alone_it_gives_a_record_that_lacks_it_the_distance_that_these_have_from_each_other():
    single = fusion.build("deep.unimodal", {**TINY, "modality": "series", "learning": {**QUICK, "normal_only": True}}, at=())
    single.fit(TRAIN, VAL, Run(seed=0, quiet=True))
    bank = single.bank
    each = [distance(bank[[number]], torch.cat([bank[:number], bank[number + 1 :]])) for number in range(len(bank))]
    assert single.score(TEST.only(["video"])).tolist() == pytest.approx([float(torch.cat(each).mean())] * 40, abs=1e-6)


def test_one_modality_has_to_be_named_where_several_are_shown():
    shown = TRAIN._replace(tokens={"audio": TRAIN.tokens["audio"]})
    shown = shown.take(shown.present.any(1).nonzero()[:, 0].tolist())
    assert fusion.build("deep.unimodal", TINY, at=()).open(shown.widths, classes=["normal", "x"]).shown == "audio"
    with pytest.raises(Refusal, match="name one by `modality`"):
        fusion.build("deep.unimodal", TINY, at=()).open(TRAIN.widths, classes=["normal", "x"])
    with pytest.raises(Refusal, match="no modality 'smell'"):
        fusion.build("deep.unimodal", {**TINY, "modality": "smell"}, at=()).open(TRAIN.widths, classes=["normal", "x"])
