import pytest
import torch

from stages.timeseries.detector import Stretch
from stages.timeseries.windows import Kind, Windows, kinds, lengthened, views


def counted(steps: int, start: int = 0) -> Stretch:
    return Stretch(torch.arange(start, start + steps, dtype=torch.float32)[:, None].repeat(1, 2), None)


def test_windows_are_views():
    values = counted(50).values
    assert views(values, 10, 3).untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
    assert views(values, 10, 3)[:, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39]
    assert views(values, 51).shape == (0, 51, 2)


def test_windows_of_a_stretch_follow_those_of_the_one_before_and_none_crosses():
    windows = Windows([counted(10), counted(3, 50), counted(7, 100)], length=5, stride=2)
    taken = windows.take(list(range(windows.samples))).features["window"][..., 0]
    assert taken[:, 0].tolist() == [0, 2, 4, 100, 102] and (taken.diff(dim=1) == 1).all()
    assert torch.equal(torch.cat([batch.features["window"] for batch in windows])[..., 0], taken)


def test_positions_come_in_the_order_asked():
    windows = Windows([counted(10)], length=4, stride=1)
    assert windows.take([5, 0, 5]).features["window"][:, 0, 0].tolist() == [5, 0, 5]
    with pytest.raises(IndexError, match="7 windows, asked for number 7"):
        windows.take([7])


def test_a_taken_window_is_a_copy():
    stretch = counted(10)
    Windows([stretch], 4, 1).take([0]).features["window"].zero_()
    assert torch.equal(stretch.values, counted(10).values)


def test_labels_are_there_only_if_every_stretch_has_them():
    label = torch.zeros(10, dtype=torch.int8)
    label[9] = 1
    labelled = counted(10)._replace(label=label)
    batch = Windows([labelled], 4, 3).take([0, 1, 2])
    assert batch.features["label"].tolist() == [[0] * 4, [0] * 4, [0, 0, 0, 1]] and batch.label.tolist() == [0, 0, 1]
    assert "label" not in Windows([labelled, counted(10)], 4, 3).take([0]).features


def test_where_all_stretches_are_shorter_than_a_window_they_are_lengthened_in_front():
    windows = Windows([counted(3, 5), counted(0)], length=5, stride=1)
    assert windows.samples == 1 and windows.take([0]).features["window"][0, :, 0].tolist() == [5, 5, 5, 6, 7]
    assert lengthened(counted(3).values, 2).shape == (3, 2)


def test_kinds_of_windows():
    label = torch.tensor([0, 0, 1, 0, 0, 0, 0])
    found = kinds(label, length=3, stride=1, mask_last_n=1)
    assert found.tolist() == [Kind.ANOMALY, Kind.DISTURBING_NORMAL, Kind.DISTURBING_NORMAL, Kind.PURE_NORMAL, Kind.PURE_NORMAL]
