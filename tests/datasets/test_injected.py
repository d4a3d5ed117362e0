"""Anomalies that are put into signals: what each kind does, where they go, and what is on record."""

from itertools import pairwise

import numpy as np
import pytest

from stages.datasets import injected
from stages.datasets.injected import ADDING, ANYWHERE, APART, KEEPING, KINDS, Place, Scene
from stages.datasets.server_metrics import VARIABLES, generate, normal

STEPS = 4000
VALUES = normal(np.arange(STEPS, dtype=float), seed=5)


def scene(kind: str, start: int = 2000, seed: int = 0) -> Scene:
    return Scene(VALUES, VARIABLES, start, start + KINDS[kind].longest, np.random.default_rng(seed))


def moved(delta: np.ndarray) -> set[str]:
    return {name for name, column in zip(VARIABLES, delta.T) if (column != 0).any()}


SPECIFIED = {  # the metrics that each kind names
    "spike": {"cpu", "network", "response", "errors", "queue"},
    "memory_leak": {"memory", "disk", "threads"},
    "cpu_saturation": {"cpu", "threads", "queue", "response"},
    "network_congestion": {"network", "response", "errors", "queue"},
    "cascading_failure": {"errors", "response", "queue", "cpu"},
    "resource_contention": {"threads", "queue", "cpu", "memory"},
}


@pytest.mark.parametrize("kind", SPECIFIED)
def test_a_kind_moves_the_metrics_it_names_up(kind):
    delta = KINDS[kind].effect(scene(kind))
    assert moved(delta) == SPECIFIED[kind] and delta.min() >= 0 and 0.3 <= delta.max() <= 0.6


def test_a_saturated_cpu_is_between_seven_tenths_and_one():
    place = scene("cpu_saturation")
    cpu = place.now(0) + injected.cpu_saturation(place)[:, 0]
    assert cpu.min() >= 0.7 and cpu.max() <= 1


def test_a_failure_cascades_from_errors_to_answers_to_the_queue():
    delta = injected.cascading_failure(scene("cascading_failure"))
    first = {name: int(np.flatnonzero(column)[0]) for name, column in zip(VARIABLES, delta.T) if column.any()}
    assert first["errors"] == 0 and first["response"] == 120 // 4 and first["queue"] == 120 // 3


def test_contention_comes_in_three_waves():
    threads = injected.resource_contention(scene("resource_contention"))[:, VARIABLES.index("threads")]
    assert (np.diff(np.sign(threads - threads.max() / 2)) > 0).sum() == 3


def test_a_point_spike_moves_two_to_eight_variables_and_no_more_than_there_are():
    found = [len(moved(injected.point_spike(scene("point_spike", seed=seed)))) for seed in range(60)]
    assert set(found) == set(range(2, 9))
    one = Scene(VALUES[:, :1], ("cpu",), 10, 14, np.random.default_rng(0))
    assert (injected.point_spike(one) > 0).all()


def test_decorrelation_says_what_was_said_60_to_300_steps_before_and_after_where_there_is_no_before():
    for start, direction in ((2000, -1), (0, 1)):
        place = scene("decorrelation", start)
        delta = injected.decorrelation(place)
        (variable,) = np.flatnonzero(delta.any(0))
        said = place.now(variable) + delta[:, variable]
        found = [shift for shift in range(60, 301) if np.allclose(VALUES[start + direction * shift :, variable][: len(said)], said)]
        assert variable > 0 and len(found) == 1


def test_a_frozen_sensor_keeps_its_last_value_and_a_dropped_one_has_none():
    place = scene("frozen_sensor")
    delta = injected.frozen_sensor(place)
    (variable,) = np.flatnonzero(delta.any(0))
    assert np.allclose(place.now(variable) + delta[:, variable], VALUES[place.start - 1, variable])
    assert np.isnan(injected.dropout(scene("dropout"))).all(0).sum() == 1


def test_a_contextual_level_is_usual_at_other_times_and_a_trend_gets_there_slowly():
    for seed in range(20):
        place = scene("contextual", seed=seed)
        delta = injected.contextual(place)
        (variable,) = np.flatnonzero(delta.any(0))
        low, high = np.quantile(VALUES[:, variable], [0.01, 0.99])
        assert low - 0.01 < np.median(place.now(variable) + delta[:, variable]) < high + 0.01
        assert np.ptp(delta[:, variable]) == 0 and abs(delta[0, variable]) > 2 * place.now(variable).std()
        trend = injected.trend_shift(scene("trend_shift", seed=seed)).sum(1)
        assert abs(trend[0]) < abs(trend[-1]) / 50


@pytest.mark.parametrize("kind", sorted(KEEPING))
def test_the_largest_deviation_does_not_find_a_kind_that_keeps_the_usual_range(kind):
    """ROC AUC of max |z| near .5; for the seven others it is above .9 at gain 1."""
    scores = [max_z_auc(kind, seed) for seed in range(3)]
    assert np.mean(scores) < 0.65, scores


@pytest.mark.parametrize("kind", sorted(ADDING))
def test_the_largest_deviation_finds_a_kind_that_adds_something(kind):
    assert np.mean([max_z_auc(kind, seed) for seed in range(2)]) > 0.85


def max_z_auc(kind: str, seed: int) -> float:
    made = generate(20_000, seed=seed, kinds=[kind], interval_scale=0.5)
    usual = generate(20_000, seed=seed, kinds=[]).values
    score = np.nan_to_num(np.abs(made.values - usual.mean(0)) / usual.std(0)).max(1)
    ranks = score.argsort().argsort() + 1
    positive = int(made.label.sum())
    return (ranks[made.label == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(score) - positive))


def test_places_are_in_order_apart_and_of_their_kinds_length():
    places, dropped = injected.place(200_000, KINDS, seed=3, interval_scale=0.5)
    for before, after in pairwise(places):
        assert after.start >= before.stop + KINDS[after.kind].longest + APART
    assert all(KINDS[at.kind].shortest <= at.stop - at.start <= KINDS[at.kind].longest for at in places)
    assert {at.kind for at in places} == set(KINDS) and sum(dropped.values()) > 0


def test_every_wanted_place_is_kept_or_counted_as_dropped():
    places, dropped = injected.place(100_000, KINDS, seed=1, interval_scale=0.3)
    wanted = {kind: injected.place(100_000, [kind], seed=1, interval_scale=0.3)[0] for kind in KINDS}
    for kind, alone in wanted.items():
        kept = [at for at in places if at.kind == kind]
        assert set(kept) <= set(alone) and len(kept) + dropped.get(kind, 0) == len(alone)


def test_the_gap_between_two_of_a_kind_is_its_mean_gap_times_the_scale():
    places, _ = injected.place(5_000_000, ["spike"], seed=0, interval_scale=1.5)
    gaps = [after.start - before.stop for before, after in pairwise(places)]
    assert np.mean(gaps) == pytest.approx(3500 * 1.5 + 25 + APART, rel=0.08)


def test_a_region_says_what_was_done_there():
    values = np.zeros((100, 8))
    changed, (region,) = injected.inject(values, VARIABLES, [Place(40, 44, "point_spike", 0)], gain=0.5, seed=7)
    assert changed[40:44].max() == pytest.approx(region.magnitude, abs=1e-6) and 0.15 <= region.magnitude <= 0.3
    assert {VARIABLES[column] for column in np.flatnonzero(changed.any(0))} == set(region.variables)
    assert not changed[:40].any() and not changed[44:].any() and not values.any()


def test_the_gain_scales_what_is_added_but_a_dead_sensor_is_dead_at_any_gain():
    places = {kind: [Place(2000, 2000 + KINDS[kind].shortest, kind, 0)] for kind in KINDS}
    for kind, place in places.items():
        strong, weak = (injected.inject(VALUES, VARIABLES, place, gain, seed=0)[0] - VALUES for gain in (1.0, 0.25))
        share = 0.25 if KINDS[kind].scaled else 1
        assert np.allclose(np.nan_to_num(strong) * share, np.nan_to_num(weak), atol=1e-6), kind


def test_kinds_without_metrics_by_name_work_on_any_signal():
    values = np.random.default_rng(0).normal(size=(3000, 2))
    places = [Place(300 * number, 300 * number + KINDS[kind].longest, kind, 0) for number, kind in enumerate(ANYWHERE, 1)]
    changed, regions = injected.inject(values, ("a", "b"), places, 1.0, 0)
    assert {region.kind for region in regions} == set(ANYWHERE) and all(region.variables for region in regions)
    assert changed.shape == (3000, 2)
