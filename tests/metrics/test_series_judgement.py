"""What is said of a model of signals: sums over blocks give the metrics themselves, draws are honest, nothing undefined is a number."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from stages.datasets.recordings import Region
from stages.metrics.affiliation import affiliation
from stages.metrics.alarms import alarm_sums
from stages.metrics.event_blocks import delay_draws, event_blocks, ranked_draws, volume_draws
from stages.metrics.events import delay, event_f1, false_alarms_per_10k, missed_events, runs
from stages.metrics.point_adjust import pa_f1, pa_k_auc
from stages.metrics.range_based import range_based
from stages.metrics.series_judgement import SERIES_METRICS, SeriesRule, fit_threshold, judge_series
from stages.metrics.series_tables import attribution_hits, outscores, step_kinds
from stages.metrics.vus import range_auc, vus

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
RULE = SeriesRule(buffer=20, reach=15, resamples=200)
STARTS = (100, 400, 640, 900, 1210, 1500, 1720)


def scene(lift=2.0, seeds=3, steps=2000):
    """Scores, labels, held-out normal scores and regions."""
    rng = np.random.default_rng(0)
    regions = [Region(start, start + 12, "spike" if start % 200 else "drift") for start in STARTS]
    label = np.zeros(steps, int)
    for region in regions:
        label[region.start : region.stop] = 1
    return rng.standard_normal((seeds, steps)) + lift * label, label, rng.standard_normal((seeds, 3000)), regions


def judged(**changes):
    score, label, normal, regions = scene()
    given = {"score": score, "label": label, "normal_score": normal, "rule": RULE, "regions": regions} | changes
    return judge_series(**given)


@st.composite
def alarmed(draw):
    label = draw(st.lists(st.integers(0, 1), min_size=4, max_size=60).filter(lambda row: 0 < sum(row) < len(row)))
    alarm = draw(st.lists(st.integers(0, 1), min_size=len(label), max_size=len(label)).filter(any))
    border = draw(st.integers(1, len(label) - 1))
    return np.array(alarm, bool), np.array(label, bool), [border, len(label) - border], draw(st.integers(0, 6))


@QUICK
@given(alarmed())
def test_sums_over_all_blocks_are_the_metrics_themselves(data):
    alarm, label, lengths, reach = data
    blocks = event_blocks(label, lengths, reach)
    found = alarm_sums(alarm, label, lengths, blocks.of_step).drawn(np.ones((1, len(blocks.eventful)))).metrics()
    near, ranges = affiliation(alarm, label, lengths), range_based(alarm, label, lengths=lengths)
    precision, recall, f1, _ = precision_recall_fscore_support(label, alarm, average="binary", zero_division=0)
    expected = {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "missing_alarm_rate": 1 - recall,
        "false_alarm_rate": alarm[~label].mean(),
        "event_f1": event_f1(alarm, label, lengths),
        "range_f1": ranges.f1,
        "affiliation_f": near.f,
        "affiliation_precision": near.precision,
        "affiliation_recall": near.recall,
        "missed_event_rate": missed_events(alarm, label, lengths) / runs(label, lengths).number,
        "false_alarms_per_10k": false_alarms_per_10k(alarm, label, lengths),
    }
    assert {name: value[0] for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


@QUICK
@given(alarmed())
def test_a_block_holds_an_event_and_its_surroundings_whole_and_no_border(data):
    _, label, lengths, reach = data
    blocks = event_blocks(label, lengths, reach)
    segment = np.repeat([0, 1], lengths)
    assert (np.diff(blocks.of_step) >= 0).all() and set(blocks.of_step) == set(range(len(blocks.eventful)))
    assert all(len(set(segment[blocks.of_step == block])) == 1 for block in range(len(blocks.eventful)))
    assert (blocks.eventful == (np.bincount(blocks.of_step, label) > 0)).all()
    for start, stop in zip(*runs(label, lengths)):
        near = [step for step in range(max(start - reach, 0), min(stop + reach, len(label))) if segment[step] == segment[start]]
        assert len(set(blocks.of_step[near])) == 1


def test_a_draw_of_repeated_blocks_is_the_metric_of_the_repeated_steps():
    """The oracle for the draws: repeat the steps of each block as often as it was drawn, and measure that."""
    rng = np.random.default_rng(1)
    score, label, _, _ = scene(lift=1.0)
    score, label = np.round(score[0], 1), label == 1
    blocks = event_blocks(label, None, RULE.buffer // 2)
    weight = rng.integers(0, 3, (1, len(blocks.eventful)))
    weight[0, np.flatnonzero(blocks.eventful)[:2]] = 1, 2
    members = [np.flatnonzero(blocks.of_step == block) for block in np.repeat(np.arange(len(blocks.eventful)), weight[0])]
    steps, lengths = np.concatenate(members), [len(one) for one in members]
    drawn = ranked_draws(score, label, None, blocks, weight)
    assert drawn["roc_auc"][0] == pytest.approx(roc_auc_score(label[steps], score[steps]), abs=1e-3)
    assert drawn["pr_auc"][0] == pytest.approx(average_precision_score(label[steps], score[steps]), abs=1e-3)
    assert drawn["pa_f1"][0] == pytest.approx(pa_f1(score[steps], label[steps], lengths), abs=1e-3)
    assert drawn["pa_k_auc"][0] == pytest.approx(pa_k_auc(score[steps], label[steps], lengths), abs=1e-3)
    volume = volume_draws(score, label, None, RULE.buffer, blocks, weight)
    again = [range_auc(score[steps], label[steps], buffer, lengths) for buffer in (0, 4, 8, 12, 16, 20)]
    assert (volume["vus_roc"][0], volume["vus_pr"][0]) == pytest.approx(tuple(np.mean(again, axis=0)), abs=0.02)
    alarm = (score > 1) & (np.diff(blocks.of_step, append=-1) == 0)  # no run reaches over the end of a block
    found = alarm_sums(alarm, label, None, blocks.of_step).drawn(weight).metrics()
    assert found["event_f1"][0] == pytest.approx(event_f1(alarm[steps], label[steps], lengths))
    assert found["range_f1"][0] == pytest.approx(range_based(alarm[steps], label[steps], lengths=lengths).f1)
    assert found["false_alarms_per_10k"][0] == pytest.approx(false_alarms_per_10k(alarm[steps], label[steps], lengths))


def test_a_drawn_delay_is_the_median_over_the_drawn_events():
    rng = np.random.default_rng(2)
    score, label, _, _ = scene(lift=0.5)
    alarm, events, blocks = score[0] > 1, runs(label == 1), event_blocks(label == 1, None, 10)
    waited = [np.argmax(alarm[start:stop]) if alarm[start:stop].any() else np.nan for start, stop in zip(*events)]
    weight = rng.integers(0, 3, (50, len(blocks.eventful)))
    drawn = delay_draws(alarm, events, blocks, weight)
    for row, found in zip(weight, drawn):
        assert found == np.nanmedian(np.repeat(waited, row[blocks.of_step[events.start]]))


def test_values_are_the_metrics_averaged_over_seeds_each_at_its_own_threshold():
    score, label, normal, _ = scene()
    cells = judged().cells
    alarms = [row > np.quantile(held_out, 0.99) for row, held_out in zip(score, normal)]
    assert list(cells) == list(SERIES_METRICS)
    assert cells["roc_auc"]["value"] == pytest.approx(np.mean([roc_auc_score(label, row) for row in score]))
    assert cells["vus_pr"]["value"] == pytest.approx(np.mean([vus(row, label, 20).pr for row in score]))
    assert cells["event_f1"]["value"] == pytest.approx(np.mean([event_f1(alarm, label) for alarm in alarms]), abs=0.01)
    assert cells["delay"]["value"] == pytest.approx(np.mean([delay(alarm, label) for alarm in alarms]), abs=0.4)
    assert cells["vus_roc"]["buffer"] == 20 and cells["pa_f1"]["inflated"]


def test_intervals_hold_their_values_and_do_not_change_from_run_to_run():
    first, second = judged(), judged()
    assert json.dumps(first.result(), sort_keys=False) == json.dumps(second.result(), sort_keys=False)
    for name, cell in first.cells.items():
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"], name
    assert all(
        first.cells[name]["low"] < first.cells[name]["value"] < first.cells[name]["high"]
        for name in ("roc_auc", "vus_pr", "recall", "delay")
    )
    assert first.cells["roc_auc"]["high"] - first.cells["roc_auc"]["low"] < 0.1


def test_intervals_are_wider_where_fewer_events_speak():
    score, label, _, _ = scene()
    few = judged(score=score[:, :520], label=label[:520], regions=())
    many = judged().cells["recall"]
    assert few.cells["recall"]["high"] - few.cells["recall"]["low"] > many["high"] - many["low"]


def test_one_event_says_nothing_about_the_spread():
    score, label, _, _ = scene()
    cells = judged(score=score[:, :300], label=label[:300], regions=()).cells
    assert (cells["roc_auc"]["low"], cells["roc_auc"]["high"]) == (0, 1)
    assert (cells["delay"]["low"], cells["delay"]["high"]) == (0, 11)


def test_what_cannot_be_measured_is_a_reason_and_never_a_number():
    _, label, normal, _ = scene()
    calm = judged(label=0 * label, regions=()).cells
    assert "no anomalous step" in calm["roc_auc"]["reason"] and calm["vus_pr"]["value"] is None
    assert calm["recall"] == {"value": None, "reason": "no anomalous step"}
    assert calm["false_alarm_rate"]["value"] > 0
    deaf = judged(normal_score=[np.zeros(0)] * 3).cells
    assert deaf["f1"]["value"] is None and "held-out" in deaf["f1"]["reason"] and deaf["pr_auc"]["value"] > 0
    silent = judged(normal_score=normal + 100).cells
    assert silent["f1"]["value"] == 0 and silent["precision"]["reason"] == "nothing was called anomalous"
    assert [silent[name]["value"] for name in ("event_f1", "range_f1", "affiliation_f")] == [0, 0, 0]
    assert silent["delay"]["reason"] == "no event was found" and silent["affiliation_precision"]["value"] is None


def test_a_mean_says_over_how_many_seeds_it_was_taken():
    _, _, normal, _ = scene()
    normal[0] += 100
    cell = judged(normal_score=normal).cells["precision"]
    assert cell["over"] == "2 of 3 seeds" and cell["value"] > 0.3 and cell["low"] > 0


def test_a_draw_without_a_value_does_not_count_as_0():
    """The one alarm is right: precision is 1 in every draw that holds it, and unknown in the others."""
    score, _, normal, _ = scene(seeds=1)
    score[0, STARTS[0]] = 50
    cell = judged(score=score, normal_score=normal + 20).cells["precision"]
    assert (cell["low"], cell["value"], cell["high"]) == (1, 1, 1)


def test_thresholds_are_quantiles_of_held_out_scores():
    assert fit_threshold(np.arange(1000.0), 0.01).value == 990
    assert fit_threshold(np.arange(1000.0), 0.01).achieved["false_alarm_rate"] == pytest.approx(0.009)
    assert "too few" in fit_threshold(np.arange(50.0), 1e-3).note
    judgement = judged()
    strict, loose = judgement.at_rate["0.001"], judgement.at_rate["0.01"]
    assert loose["recall"]["value"] == judgement.cells["recall"]["value"] > strict["recall"]["value"]


def test_step_kinds_by_hand():
    """Reach 2, two segments: the second one starts right after an anomaly of the first and is pure."""
    kinds = step_kinds(np.array([0, 1, 0, 0, 0, 1, 0, 0], bool), 2, [6, 2])
    assert "".join("pda"[np.argmax(step)] for step in zip(*kinds)) == "paddpapp"


@pytest.mark.parametrize("normal", [[0.0, 1.0, 2.0], [1.0], [3.0, 3.0]])
def test_outscores_equals_scikit_learn(normal):
    anomalous = [1.0, 3.0]
    expected = roc_auc_score([1, 1] + [0] * len(normal), anomalous + normal)
    assert outscores(np.array(anomalous), np.array(normal)) == pytest.approx(expected)


def test_the_table_of_types_by_hand():
    """Two spikes and a drift; alarms at the second step of the first spike and on all of the drift."""
    score = np.zeros((1, 300))
    regions = [Region(50, 54, "spike"), Region(150, 154, "spike"), Region(250, 260, "drift")]
    score[0, 51], score[0, 250:260], score[0, 262] = 5, 3, 4
    label = np.zeros(300, int)
    for region in regions:
        label[region.start : region.stop] = 1
    judgement = judge_series(score, label, [np.linspace(0, 1, 500)], RULE, regions=regions)
    spike, drift = judgement.types["spike"], judgement.types["drift"]
    assert list(judgement.types) == ["drift", "spike"] and spike["events"] == 2
    assert spike["event_recall"]["value"] == 0.5 and spike["point_recall"]["value"] == 1 / 8 and spike["delay"]["value"] == 1
    assert spike["mean_score"]["value"] == 5 / 8 and drift["mean_score"]["value"] == 3
    assert spike["roc_auc_pure"]["value"] == 1 / 8 + 7 / 16
    assert drift["roc_auc_pure"]["value"] == 1 and drift["roc_auc_disturbing"]["value"] == pytest.approx(44 / 45)
    assert judgement.kinds["disturbing_normal"] == {
        "steps": 45,
        "roc_auc": {"value": pytest.approx(outscores(score[0][label == 1], score[0][step_kinds(label == 1, 15).disturbing]))},
        "false_alarm_rate": {"value": 1 / 45},
    }
    assert judgement.kinds["pure_normal"]["false_alarm_rate"] == {"value": 0.0}


def test_a_region_outside_the_test_steps_is_refused():
    with pytest.raises(ValueError, match=r"within the 2000 test steps, got 1990..2010"):
        judged(regions=[Region(1990, 2010, "spike")])


def test_a_false_alarm_in_another_segment_is_not_a_hit_of_the_event_beside_it():
    """Alarm on the first step after the border: the event before it ends with the segment."""
    label, alarm = np.array([0, 0, 1, 0, 0, 0], bool), np.array([0, 0, 1, 1, 0, 0], bool)
    assert false_alarms_per_10k(alarm, label) == 0
    assert false_alarms_per_10k(alarm, label, [3, 3]) == pytest.approx(10_000 / 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.zeros(5)}, "one row per seed"),
        ({"normal_score": [np.zeros(3)]}, "of 3 seeds"),
        ({"lengths": [1, 2]}, "add up to the 2000 steps"),
        ({"label": np.zeros(5, int)}, "as the scores have"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        judged(**changes)


def test_blame_is_the_share_of_the_right_variables_among_as_many_that_add_most():
    shares = np.zeros((10, 3))
    shares[:5] = [3, 2, 1]
    shares[5:] = [0, 1, 5]
    regions = [Region(0, 5, "x", ("a", "c")), Region(6, 9, "y", ("c",)), Region(9, 10, "z")]
    cell = attribution_hits(shares, regions, ["a", "b", "c"])
    assert cell == {"value": pytest.approx((0.5 + 1) / 2), "chance": pytest.approx((2 / 3 + 1 / 3) / 2), "events": 2}
    assert attribution_hits(shares, regions[2:], ["a", "b", "c"])["reason"]
