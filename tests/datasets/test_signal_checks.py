"""What is wrong with a recording is mended and told, or refused."""

import numpy as np
import pytest

from stages.datasets.recordings import Recording, Region
from stages.datasets.samples import DataError
from stages.datasets.signal_checks import check

STEPS = 100


def recording(**changes) -> Recording:
    values = np.random.default_rng(0).normal(size=(STEPS, 2)).astype(np.float32)
    plain = Recording("r", "c", ("a", "b"), values, np.zeros(STEPS, np.int8), np.arange(STEPS) * 2.0)
    return plain._replace(**changes)


def codes(checked) -> set[str]:
    return {problem.code for problem in checked.problems}


def test_a_recording_without_faults_comes_back_as_it_was():
    plain = recording()
    checked = check(plain)
    assert checked.recording is plain and checked.problems == [] and checked.breaks == [] and checked.median_step_s == 2


def test_a_gap_of_more_than_five_steps_breaks_the_recording_after_it():
    time = np.arange(STEPS, dtype=float)
    time[40:] += 4  # five steps from 39 to 40: still no gap
    time[60:] += 5
    checked = check(recording(time_s=time))
    assert checked.breaks == [60] and codes(checked) == {"E311"}


def test_uneven_steps_are_told_and_refused_when_most_are_gaps():
    draw = np.random.default_rng(0)
    checked = check(recording(time_s=np.cumsum(draw.uniform(0.2, 1.8, STEPS))))
    assert codes(checked) == {"E312"}
    with pytest.raises(DataError, match="E312"):
        check(recording(time_s=np.cumsum(draw.choice([1.0, 50.0], STEPS, p=[0.7, 0.3]))))


def test_rows_out_of_order_are_sorted_with_their_labels():
    plain = recording(label=np.arange(STEPS).astype(np.int8) % 2)
    order = np.random.default_rng(1).permutation(STEPS)
    mixed = plain._replace(values=plain.values[order], label=plain.label[order], time_s=plain.time_s[order])
    checked = check(mixed)
    assert codes(checked) == {"E314"}
    for name in ("values", "label", "time_s"):
        assert np.array_equal(getattr(checked.recording, name), getattr(plain, name))


def test_rows_out_of_order_are_refused_where_regions_count_them():
    with pytest.raises(DataError, match="E314"):
        check(recording(time_s=np.arange(STEPS)[::-1].astype(float), regions=(Region(3, 5, "spike"),)))


def test_copies_of_a_row_are_left_out_and_other_rows_of_the_same_time_stay():
    plain = recording()
    time, values = plain.time_s.copy(), plain.values.copy()
    time[10], values[10] = time[9], values[9]  # a copy
    time[20] = time[19]  # another row of the same time
    checked = check(plain._replace(time_s=time, values=values))
    assert codes(checked) == {"E313"} and len(checked.recording.values) == STEPS - 1
    assert np.array_equal(checked.recording.values, np.delete(values, 10, axis=0))
    assert len(checked.recording.label) == len(checked.recording.time_s) == STEPS - 1


def test_a_recording_that_is_all_for_training_stays_so_without_its_copies():
    plain = recording(train_steps=STEPS)
    time, values = plain.time_s.copy(), plain.values.copy()
    time[10], values[10] = time[9], values[9]
    assert check(plain._replace(time_s=time, values=values)).recording.train_steps == STEPS - 1
    assert len(check(plain._replace(time_s=time, values=values, train_steps=40)).recording.values) == STEPS


def test_many_rows_of_one_time_are_several_machines_in_one_file():
    with pytest.raises(DataError, match=r"E313 c/r: 50 of 100 rows .* a file for each machine"):
        check(recording(time_s=np.repeat(np.arange(STEPS / 2), 2)))


def test_missing_values_are_counted_and_refused_past_half_of_a_variable():
    values = recording().values
    values[:30, 1] = np.nan
    checked = check(recording(values=values))
    assert checked.missing == 30 and codes(checked) == {"E315"} and "b" in checked.problems[0].what
    values[:51, 1] = np.nan
    with pytest.raises(DataError, match=r"E315 .* 51% of b"):
        check(recording(values=values))


def test_infinite_values_count_as_missing():
    values = recording().values
    values[7, 0] = np.inf
    checked = check(recording(values=values))
    assert codes(checked) == {"E318", "E315"} and np.isnan(checked.recording.values[7, 0]) and checked.missing == 1


def test_constant_variables_are_told():
    values = recording().values
    values[:, 0] = 3
    checked = check(recording(values=values))
    assert checked.constant == ["a"] and codes(checked) == {"E316"}


@pytest.mark.parametrize(
    "changes", [{"values": np.zeros((0, 2), np.float32)}, {"values": np.zeros((STEPS, 0), np.float32)}, {"label": np.zeros(3, np.int8)}]
)
def test_a_recording_of_nothing_or_of_uneven_parts_is_refused(changes):
    with pytest.raises(DataError, match="E319"):
        check(recording(**changes))
