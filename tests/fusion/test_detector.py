"""What the contract of a detector of records refuses before anything is learnt."""

import pytest

from stages.fusion.detector import RecordDetector
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


@pytest.mark.parametrize("supervised", [True, False])
def test_a_modality_that_nothing_learnt_from_has_is_refused(supervised):
    """Else its weights would be as they were drawn. For what learns from normal records alone, normal ones must have it."""
    some = records(seed=0, count=40)
    name = next(iter(some.tokens))
    lacking = some._replace(tokens=some.tokens | {name: some.tokens[name].emptied()})
    with pytest.raises(Refusal, match=name):
        Spy(supervised=supervised).fit(lacking, lacking, Run(seed=0, quiet=True))
    assert Spy(supervised=supervised).fit(some, some, Run(seed=0, quiet=True)).seen.samples == (40 if supervised else int((some.label == 0).sum()))
