"""A planted moment is named, by the medium that shows it, and what shows nothing names nothing."""

import numpy as np
import pytest
import torch

from stages.datasets.records import Record, Tokens, packed
from stages.fusion.detector import RecordDetector
from stages.fusion.occlusion import losses, spans, strongest
from tests.fusion import synthetic


class Loudest(RecordDetector):
    """The largest value of any token of the record."""

    supervised, drawn = True, False

    def prepare(self, widths, seed):
        pass

    def rate(self, records):
        best = torch.zeros(records.samples)
        for one in records.tokens.values():
            owner = torch.repeat_interleave(torch.arange(records.samples), one.lengths)
            best = best.scatter_reduce(0, owner, one.values.amax(1), "amax")
        return best


WIDTHS = {"sound": 3, "sensors": 2, "photo": 2}


def weld(name: str, at: dict[str, list[int]] | None = None, steps: int = 20) -> Record:
    """Sound and sensors of so many steps, with a high value where `at` says, and one photograph that shows nothing."""
    tokens = {}
    for modality, width in (("sound", 3), ("sensors", 2)):
        values = torch.full((steps, width), 0.1)
        for place in (at or {}).get(modality, ()):
            values[place] = 4.0
        tokens[modality] = Tokens(values, torch.linspace(0, 1, steps))
    return Record(name, {**tokens, "photo": Tokens(torch.full((1, 2), 0.1), torch.zeros(1))}, 1)


@pytest.fixture
def detector() -> Loudest:
    return Loudest().open(WIDTHS)


def test_a_planted_moment_is_named_by_its_medium_and_its_time(detector):
    found = spans(detector, packed([weld("a", {"sound": [13]}), weld("b"), weld("c", {"sensors": [2]})], WIDTHS))
    assert [(one.record_id, one.modality) for one in found] == [("a", "sound"), ("c", "sensors")]
    assert found[0].start <= 13 / 19 <= found[0].end and found[0].end - found[0].start == pytest.approx(0.1)
    assert found[0].strength == pytest.approx(3.9) and found[1].start <= 2 / 19 <= found[1].end


def test_the_parts_are_those_of_the_time_that_a_record_lasts(detector):
    one = weld("a", {"sound": [19]})
    short = {name: tokens._replace(time=tokens.time * 0.2) for name, tokens in one.modalities.items()}
    found = spans(detector, packed([one._replace(modalities=short), weld("b", {"sound": [19]})], WIDTHS))
    assert (found[0].start, found[0].end) == (pytest.approx(0.18), pytest.approx(0.2))
    assert (found[1].start, found[1].end) == (pytest.approx(0.9), pytest.approx(1.0))


def test_what_two_moments_show_is_lost_with_neither_of_them_alone(detector):
    lost, names = losses(detector, packed([weld("a", {"sound": [3, 13]})], WIDTHS))
    assert names == ["sound", "sensors"] and lost.max() == 0


def test_neighbours_that_lose_half_as_much_belong_to_the_span():
    lost = np.array([[0, 1.0, 2.0, 1.5, 0.4, 2.0], [0, 0, 0, 0, 0, 1.9]])
    assert strongest("a", lost, ["sound", "sensors"])[1:] == ("sound", pytest.approx(1 / 6), pytest.approx(4 / 6), 2.0)
    assert strongest("a", -lost, ["sound", "sensors"]) is None


def test_a_record_that_would_show_nothing_else_is_left_whole():
    one = Record("a", {"text": Tokens(torch.ones(2, 8), torch.tensor([0.5, 0.55]))}, 1)
    other = Record("b", {"text": Tokens(torch.ones(2, 8), torch.tensor([0.0, 0.9]))}, 1)
    detector = Loudest().open(synthetic.WIDTHS)
    lost, _ = losses(detector, packed([one, other], synthetic.WIDTHS))
    assert (lost == 0).all()


def test_photographs_name_no_span_though_their_angles_stand_where_times_do():
    angled = Record("r", {"image": Tokens(torch.tensor([[0.1], [4.0], [0.1]]), torch.tensor([0.0, 0.5, 1.0]))}, 1)
    named = Loudest().open({"image": 1})
    assert losses(named, packed([angled], {"image": 1}))[1] == [] and spans(named, packed([angled], {"image": 1})) == []
    timed = packed([angled._replace(modalities={"film": angled.modalities["image"]})], {"film": 1})
    assert [one.modality for one in spans(Loudest().open({"film": 1}), timed)] == ["film"]
