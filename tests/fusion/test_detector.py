"""What the contract of a detector of records refuses before anything is learnt."""

import math

import numpy as np
import pytest

from stages import fusion
from stages.fusion import artefact
from stages.fusion.detector import RecordDetector
from stages.fusion.scoring import nothing_known
from stages.params import ParamsError
from stages.training import Run
from stages.types import Refusal
from tests.fusion.synthetic import records


class Spy(RecordDetector):
    """Learns nothing."""

    def __init__(self, *, supervised: bool = True) -> None:
        super().__init__()
        self.supervised = supervised

    def prepare(self, widths, seed):
        pass

    def learn(self, train, val, run):
        self.seen = train


class Teller(Spy):
    telling = True


def test_a_model_that_tells_faults_knows_its_classes_after_a_fit_and_after_a_load(tmp_path, monkeypatch):
    some = records(seed=0, count=30)
    detector = Teller().fit(some, some, Run(seed=0, quiet=True))
    assert detector.classes == ["normal", *sorted({fault for fault in some.fault if fault})] and not Spy().fit(some, some, Run(seed=0, quiet=True)).classes
    monkeypatch.setattr(fusion, "build", lambda *_, **__: Teller())
    artefact.save(tmp_path, detector, {"model": "spy", "detector": "spy", "options": {}}, [])
    assert artefact.load(tmp_path).classes == detector.classes


@pytest.mark.parametrize("supervised", [True, False])
def test_a_modality_that_nothing_learnt_from_has_is_refused(supervised):
    """Else its weights would be as they were drawn. For what learns from normal records alone, normal ones must have it."""
    some = records(seed=0, count=40)
    name = next(iter(some.tokens))
    lacking = some._replace(tokens=some.tokens | {name: some.tokens[name].emptied()})
    with pytest.raises(Refusal, match=name):
        Spy(supervised=supervised).fit(lacking, lacking, Run(seed=0, quiet=True))
    assert Spy(supervised=supervised).fit(some, some, Run(seed=0, quiet=True)).seen.samples == (40 if supervised else int((some.label == 0).sum()))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("classical.knnn", {}, "no detector of records 'classical.knnn'; did you mean 'classical.knn'?"),
        ("perceiver_moe", {"heads": 5}, "records.models.mine: width must be a multiple of heads, got 256 and 5"),
        ("perceiver_moe", {"haeds": 4}, "records.models.mine.haeds is not a known key; did you mean 'heads'?"),
    ],
)
def test_what_params_yaml_asks_for_and_cannot_be_is_one_line_for_its_user(name, options, said):
    with pytest.raises(ParamsError) as error:
        fusion.build(name, options, at=("records", "models", "mine"))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_an_earlier_fit_left_does_not_outlive_the_next(tmp_path):
    """By hand, without DVC, which would remove it."""
    detector = fusion.build("classical.prevalence", {}, at=()).fit(records(0, 20), records(1, 20), Run(seed=0, quiet=True))
    config = {"model": "prevalence", "detector": "classical.prevalence", "options": {}}
    artefact.refuse(tmp_path, "no weights")
    artefact.save(tmp_path, detector, config, [])
    assert artefact.refusal(tmp_path) is None and artefact.load(tmp_path).widths == detector.widths
    artefact.refuse(tmp_path, "no weights")
    assert artefact.refusal(tmp_path) == "no weights" and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(("name", "options"), [("unimodal", {"modality": "text"}), ("mean_logit", {})])
def test_what_is_said_of_a_record_of_which_nothing_is_known(name, options):
    """The logit of the share of anomalies in train, and not the mean over validation records, which others would give."""
    train = records(0, 80, anomalous=0.25)
    detector = fusion.build(f"classical.{name}", options, at=()).fit(train, records(1, 40), Run(seed=0, quiet=True))
    assert nothing_known(detector, np.array([5.0])) == detector.nothing == pytest.approx(math.log(20 / 60))
    assert nothing_known(fusion.build("classical.knn", {}, at=()), np.array([1.0, 3.0])) == 2.0
