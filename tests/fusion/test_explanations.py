"""Explanations add up, point at what was planted, and say when they cannot be given."""

import pytest
import torch

from stages import fusion
from stages.datasets.records import Ragged, Record, Records, Tokens, packed
from stages.fusion import explanations, faithfulness
from stages.fusion.explanations import NotExplained, Span
from stages.training import Run

STEPS = {"series": 48, "audio": 12, "image": 3}
WIDTHS = {"series": 4, "audio": 6, "image": 5}
SMALL = {
    "features": 16,
    "encoding": {"width": 16, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32, "patch": 4, "dropout": 0.0},
    "learning": {"steps": 60, "learning_rate": 5e-3, "classes_per_batch": 2, "per_class": 8, "modality_dropout": 0.0, "warmup": 0},
}
CROSS = {**SMALL, "queries": 2, "layers": 1, "heads": 2, "ffn": 32}


def planted(seed: int, count: int = 24) -> tuple[Records, dict[str, tuple[float, float]]]:
    """Half of the records have a burst of a fifth of the clock, in sensors and sound at once; when it was, by record."""
    generator, found, truth = torch.Generator().manual_seed(seed), [], {}
    for number in range(count):
        bad, start = number % 2, 0.1 + 0.6 * float(torch.rand(1, generator=generator))
        modalities = {}
        for name, steps in STEPS.items():
            time = torch.zeros(steps) if name == "image" else torch.linspace(0, 1, steps)
            values = torch.randn(steps, WIDTHS[name], generator=generator) + 1
            if bad and name != "image":
                values[(time >= start) & (time <= start + 0.2)] += 4
            modalities[name] = Tokens(values, time)
        if number == 3:
            del modalities["audio"]
        found.append(Record(f"r{number}", modalities, bad, fault="burst" if bad else ""))
        if bad:
            truth[f"r{number}"] = (start, start + 0.2)
    return packed(found, WIDTHS), truth


TRAIN, _ = planted(0, 48)
TEST, TRUTH = planted(1)
BASELINE = explanations.typical(TRAIN.take((TRAIN.label == 0).nonzero()[:, 0].tolist()))
BAD = TEST.take((TEST.label == 1).nonzero()[:, 0].tolist())


@pytest.fixture(scope="module")
def cross():
    return fusion.build("deep.cross_attention", CROSS, at=("records", "models", "d")).fit(TRAIN, TEST, Run(seed=0, quiet=True))


def to_baseline(given: Records) -> Records:
    tokens = {name: one._replace(values=explanations.stand_ins(one, BASELINE[name])) for name, one in given.tokens.items()}
    return given._replace(tokens=tokens)


def test_the_typical_record_is_one_of_the_normal_ones_and_no_outlier():
    good = TRAIN.take((TRAIN.label == 0).nonzero()[:, 0].tolist())
    found = explanations.typical(good)
    means = good.tokens["audio"].values.view(-1, 12, 6).mean(1)
    off = ((means - means.mean(0)) / means.std(0, correction=0)).square().sum(1)
    assert torch.equal(found["audio"].values, good.tokens["audio"].values.view(-1, 12, 6)[off.argmin()])
    assert list(explanations.typical(good.only(["image"]))) == ["image"]


def test_a_token_is_stood_for_by_the_one_of_the_same_moment():
    one = Ragged(torch.zeros(4, 1), torch.tensor([0.0, 0.4, 1.0, 0.7]), torch.tensor([0, 3, 4]))
    timed, photos = (
        Tokens(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, 0.5, 1.0])),
        Tokens(torch.tensor([[1.0], [2.0]]), torch.zeros(2)),
    )
    assert explanations.stand_ins(one, timed)[:, 0].tolist() == [1, 2, 3, 2]
    assert explanations.stand_ins(one, photos)[:, 0].tolist() == [1, 2, 1, 1]


def test_integrated_gradients_add_up_to_the_difference_in_score(cross):
    found = explanations.integrated_gradients(cross, TEST, BASELINE)
    difference = cross.score(TEST) - cross.score(to_baseline(TEST))
    total = torch.zeros(TEST.samples)
    for name, one in found.strengths.items():
        total.index_add_(0, torch.repeat_interleave(torch.arange(TEST.samples), TEST.tokens[name].lengths), one)
    assert difference.abs().max() > 1
    assert ((total - difference).abs() <= 2e-3 * difference.abs().clamp(min=1)).all()
    assert (found.gap.abs() <= 1e-3 * difference.abs().clamp(min=1)).all()


class Linear:
    """A detector whose score is a weighted sum of the sound."""

    def fitting(self, records):
        return records

    def rate(self, records):
        one = records.tokens["audio"]
        terms = (one.values * torch.arange(1.0, one.values.shape[1] + 1)).sum(1)
        index = torch.repeat_interleave(torch.arange(records.samples), one.lengths)
        return torch.zeros(records.samples).index_add(0, index, terms)

    def score(self, records):
        return self.rate(records).detach()


def test_integrated_gradients_of_a_linear_score_are_its_terms():
    found = explanations.integrated_gradients(Linear(), TEST, BASELINE)
    expected = (TEST.tokens["audio"].values - to_baseline(TEST).tokens["audio"].values) * torch.arange(1.0, 7.0)
    torch.testing.assert_close(found.values["audio"], expected, atol=1e-3, rtol=1e-3)
    assert (found.values["series"] == 0).all()


def test_the_strongest_span_lies_where_the_fault_was_planted(cross):
    by_gradients = explanations.integrated_gradients(cross, BAD, BASELINE).strengths
    assert faithfulness.pointing(explanations.spans(by_gradients, BAD), TRUTH) > 0.8
    sensors = BAD.only(["series"])  # with sound beside them no window is missed
    by_occlusion = explanations.occlusion(cross, sensors, BASELINE)
    assert faithfulness.pointing(explanations.spans(by_occlusion, sensors), TRUTH) > 0.8
    turned = {name: -one for name, one in by_gradients.items()}
    assert faithfulness.pointing(explanations.spans(turned, BAD), TRUTH) < 0.4


def test_deleting_what_matters_first_is_faster_than_at_random_and_inserting_it_too(cross):
    strengths = explanations.integrated_gradients(cross, BAD, BASELINE).strengths
    found = faithfulness.areas(cross, BAD, BASELINE, strengths, torch.Generator().manual_seed(0))
    assert found.deletion.nanmean() < found.random_deletion.nanmean() - 0.1
    assert found.insertion.nanmean() > found.random_insertion.nanmean() + 0.02
    turned = {name: -one for name, one in strengths.items()}
    assert (
        faithfulness.areas(cross, BAD, BASELINE, turned, torch.Generator().manual_seed(0)).deletion.nanmean()
        > found.deletion.nanmean() + 0.2
    )


def test_occlusion_is_what_the_score_loses(cross):
    found = explanations.occlusion(cross, BAD, BASELINE, bins=4, wide=1)
    one = BAD.tokens["series"]
    values = torch.where(((one.time >= 0.25) & (one.time < 0.5))[:, None], to_baseline(BAD).tokens["series"].values, one.values)
    without = BAD._replace(tokens={**BAD.tokens, "series": one._replace(values=values)})
    torch.testing.assert_close(found["series"][:, 1], cross.score(BAD) - cross.score(without))
    assert found["image"].shape == (BAD.samples, 4) and (found["image"][:, 1:] == 0).all()


def test_rollout_shares_a_record_out_among_its_tokens(cross):
    found = explanations.rollout(cross, TEST)
    total = torch.zeros(TEST.samples)
    for name, one in found.items():
        assert len(one) == len(TEST.tokens[name].values) and (one >= 0).all()
        total.index_add_(0, torch.repeat_interleave(torch.arange(TEST.samples), TEST.tokens[name].lengths), one)
    torch.testing.assert_close(total, torch.ones(TEST.samples), atol=1e-5, rtol=1e-5)
    series = found["series"].view(TEST.samples, 12, 4)
    torch.testing.assert_close(series, series[:, :, :1].expand_as(series))


def test_rolling_out_two_layers_by_hand():
    """One head, two queries, three tokens: each layer keeps half of a query and adds half of what it read."""
    first, second = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    copy, stay = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.eye(2)[None]  # the first query asks the second
    one = first / 2
    one = (one + one[:, [1, 1]]) / 2
    two = (one + second) / 2
    found = explanations.rolled([first[:, None], second[:, None]], [copy[:, None], stay[:, None]])
    torch.testing.assert_close(found, two.mean(1))


def test_attention_to_a_patch_goes_to_the_tokens_that_it_was_made_of():
    lengths = torch.tensor([8, 3, 0])
    share = torch.tensor([[0.8, 0.2], [1.0, 0.0], [0.0, 0.0]])
    assert explanations._to_tokens(share, lengths, 8).tolist() == pytest.approx([0.2] * 4 + [0.05] * 4 + [1 / 3] * 3)
    one = explanations._to_tokens(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([6]), 3)
    assert one.tolist() == pytest.approx([0.25, 0.25, 0.125, 0.125, 0.125, 0.125])


def test_a_patch_is_as_long_as_the_encoder_makes_it_also_where_the_last_one_is_short():
    found = explanations._to_tokens(torch.tensor([[0.8, 0.2]]), torch.tensor([9]), 256, patch=8)
    assert found.tolist() == pytest.approx([0.1] * 8 + [0.2])


def test_queries_that_are_padding_do_not_count():
    read, among = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), torch.eye(2)[None, None]
    assert explanations.rolled([read], [among], torch.tensor([[True, False]])).tolist() == [[0.5, 0.0]]
    assert explanations.rolled([read], [among]).tolist() == [[0.25, 0.25]]


def test_what_windows_lose_is_given_to_their_tokens():
    one = Ragged(torch.zeros(4, 1), torch.tensor([0.0, 0.6, 0.9, 0.1]), torch.tensor([0, 3, 4]))
    given = Records(["a", "b"], torch.zeros(2, dtype=torch.int8), {"audio": one})
    assert explanations.by_token({"audio": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, given)["audio"].tolist() == [1, 2, 2, 3]


def test_a_span_goes_on_over_windows_without_a_token_and_ends_where_little_is_said():
    time = torch.tensor([0.0, 0.125, 0.5, 0.625, 0.75, 0.875])
    record = Record("r", {"audio": Tokens(torch.zeros(6, 1), time), "image": Tokens(torch.zeros(2, 1), torch.zeros(2))})
    given = packed([record], {"audio": 1, "image": 1})
    strengths = {"audio": torch.tensor([0.1, 2.0, 3.0, 1.0, -5.0, 0.9]), "image": torch.tensor([1.0, 2.0])}
    found = explanations.spans(strengths, given, bins=8)
    assert found == [Span("r", "audio", 0.125, 0.625, pytest.approx(0.5)), Span("r", "image", 0.0, 1.0, pytest.approx(0.3))]


def test_photographs_are_one_stretch_though_their_angles_stand_where_times_do():
    angled = Record("r", {"image": Tokens(torch.zeros(3, 1), torch.tensor([0.0, 0.5, 1.0]))})
    found = explanations.spans({"image": torch.tensor([0.0, 3.0, 1.0])}, packed([angled], {"image": 1}), bins=8)
    assert found == [Span("r", "image", 0.0, 1.0, pytest.approx(1.0))]


def test_what_has_no_gradient_or_no_attention_is_said():
    small = {"hidden": 8, "epochs": 2}
    plain = fusion.build("classical.concat_mlp", small, at=("records", "models", "m")).fit(TRAIN, TEST, Run(seed=0, quiet=True))
    assert explanations.integrated_gradients(plain, BAD, BASELINE).gap.isfinite().all()
    with pytest.raises(NotExplained, match="ConcatMLP attends to no tokens"):
        explanations.rollout(plain, BAD)
    constant = fusion.build("classical.prevalence", {}, at=("records", "models", "n")).fit(TRAIN, TEST, Run(seed=0, quiet=True))
    with pytest.raises(NotExplained, match="has no gradient; use occlusion"):
        explanations.integrated_gradients(constant, BAD, BASELINE)


def test_areas_by_hand():
    """Two tokens of 3 and 1 over a baseline of 0, and the square of their sum: the first alone is 9 of 16, the second 1 of 16."""

    class Square(Linear):
        def score(self, records):
            return super().score(records) ** 2

    tokens = {"audio": Tokens(torch.tensor([[3.0], [1.0]]), torch.tensor([0.0, 1.0]))}
    given, baseline = packed([Record("r", tokens)], {"audio": 1}), {"audio": Tokens(torch.zeros(1, 1), torch.zeros(1))}
    found = faithfulness.areas(Square(), given, baseline, {"audio": torch.tensor([2.0, 1.0])}, torch.Generator())
    deletion = [1.0] + [1 / 16] * 5 + [0.0] * 5
    assert found.deletion.item() == pytest.approx((sum(deletion) - 0.5) / 10)
    insertion = [0.0] + [9 / 16] * 5 + [1.0] * 5
    assert found.insertion.item() == pytest.approx((sum(insertion) - 0.5) / 10)


def test_only_the_strongest_span_with_a_time_counts():
    found = [Span("r", "image", 0.0, 1.0, 0.9), Span("r", "audio", 0.0, 0.1, 0.2), Span("r", "series", 0.4, 0.6, 0.3)]
    assert faithfulness.pointing(found, {"r": (0.45, 0.55)}) == faithfulness.pointing(found[::-1], {"r": (0.45, 0.55)}) == 1
    assert faithfulness.pointing(found, {"r": (0.6, 0.7)}) == 0 and faithfulness.pointing(found, {"r": (0.6, 0.7)}, tolerance=0.1) == 1
    assert faithfulness.pointing(found, {"r": (0.45, 0.55), "other": (0.0, 1.0)}) == 0.5


def test_nothing_to_point_at_is_an_error():
    with pytest.raises(ValueError, match="known time"):
        faithfulness.pointing([], {})
    assert faithfulness.pointing([], {"r": (0.0, 0.5)}) == 0
