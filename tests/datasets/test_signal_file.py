"""Files of signals as people write them: what they hold is found out, and what could be misread is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from stages.datasets import signal_file
from stages.datasets.samples import DataError
from stages.datasets.signal_file import form_of, read_columns


def written(folder, text: str, encoding: str = "utf-8", name: str = "a.csv"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


PLAIN = "time,a,b\n0,1.5,2\n1,-3,4e2\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (PLAIN, "utf-8"),
        (PLAIN, "utf-8-sig"),
        (PLAIN, "utf-16"),
        (PLAIN.replace("\n", "\r\n"), "utf-8"),
        (PLAIN.replace(",", ";"), "utf-8"),
        (PLAIN.replace(",", "\t"), "utf-8"),
        (PLAIN.replace(",", "|"), "utf-8"),
        (PLAIN.replace(",", ";").replace(".", ","), "utf-8-sig"),
        ('"time";"a";"b"\n"0";"1,5";"2"\n"1";"-3";"4e2"\n', "cp1252"),
        ("Time , a, b\n0 , 1.5, 2\n1, -3 , 4e2\n", "utf-8"),
    ],
)
def test_the_same_numbers_come_out_however_they_are_written(tmp_path, text, encoding):
    columns = read_columns(written(tmp_path, text, encoding))
    assert columns.variables == ("a", "b") and columns.values.dtype == np.float32
    assert columns.values.tolist() == [[1.5, 2], [-3, 400]] and columns.time_s.tolist() == [0, 1]
    assert columns.label is None and columns.problems == ()


def test_umlauts_of_windows_are_read_wherever_in_the_file_they_stand(tmp_path):
    rows = "".join(f"{row};1\n" for row in range(20_000))
    path = written(tmp_path, f"a;zustand\n{rows}1;gestört\n", "cp1252")
    assert form_of(path).encoding == "cp1252" and len(read_columns(path).values) == 20_001


def test_a_file_without_a_header_gets_names_by_number(tmp_path):
    columns = read_columns(written(tmp_path, "1,2\n3,4\n", name="a.txt"))
    assert columns.variables == ("f0", "f1") and columns.values.tolist() == [[1, 2], [3, 4]]


def test_parquet_holds_the_same(tmp_path):
    table = pa.table({"timestamp": pa.array([0, 1_500], pa.timestamp("ms")), "a": [1, None], "anomaly": [False, True]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    columns = read_columns(tmp_path / "a.parquet")
    assert columns.time_s.tolist() == [0, 1.5] and columns.label.tolist() == [0, 1]
    assert columns.values[0, 0] == 1 and np.isnan(columns.values[1, 0])


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "null", "-", "n/a"])
def test_an_empty_cell_is_a_missing_value(tmp_path, cell):
    columns = read_columns(written(tmp_path, f"a,b\n1,2\n{cell},3\n"))
    assert np.isnan(columns.values[1, 0]) and columns.problems == ()


def test_a_cell_that_is_no_number_is_missing_and_named(tmp_path):
    columns = read_columns(written(tmp_path, "a;b\n1,5;2\nE-17x;3\n"))
    assert columns.values[0].tolist() == [1.5, 2] and np.isnan(columns.values[1, 0])
    (problem,) = columns.problems
    assert problem.code == "E317" and "E-17x" in problem.what


def test_a_column_of_words_is_left_out_and_said(tmp_path):
    columns = read_columns(written(tmp_path, "a,state\n1,on\n2,off\n"))
    assert columns.variables == ("a",) and "state" in columns.problems[0].what


def test_a_column_that_counts_the_rows_is_no_variable(tmp_path):
    assert read_columns(written(tmp_path, ",a\n0,5\n1,3\n2,5\n")).variables == ("a",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["0", "1", "0"], [0, 1, 0]),
        (["0.0", "1.0", "0.0"], [0, 1, 0]),
        (["Normal", "A ttack", " normal"], [0, 1, 0]),
        (["false", "true", "false"], [0, 1, 0]),
    ],
)
def test_labels_are_zero_for_normal_and_one_for_anything_else(tmp_path, words, expected):
    rows = "".join(f"{row},{word}\n" for row, word in enumerate(words))
    columns = read_columns(written(tmp_path, f"a,Normal/Attack\n{rows}"))
    assert columns.label.tolist() == expected and columns.variables == ("a",)


@pytest.mark.parametrize(
    ("first", "second", "step"),
    [
        ("2024-12-31 23:59:59", "2025-01-01 00:00:00", 1),
        ("2024-12-31T23:59:59Z", "2025-01-01T00:00:00Z", 1),
        ("31.12.2024 23:59:59", "01.01.2025 00:00:00", 1),
        ("31/12/2024 11:59:59 PM", "01/01/2025 12:00:00 AM", 1),
        ("12/31/2024 23:59", "01/01/2025 00:00", 60),
        ("10:14:33", "10:14:35", 2),
        ("2024-12-31", "2025-01-01", 86_400),
        ("1735689599000", "1735689600000", 1),
        ("1735689599000000000", "1735689600000000000", 1),
        ("0.25", "0.5", 0.25),
    ],
)
def test_times_are_seconds(tmp_path, first, second, step):
    time = read_columns(written(tmp_path, f"timestamp;a\n{first};1\n{second};2\n")).time_s
    assert time[1] - time[0] == pytest.approx(step, abs=1e-6)


def test_a_date_that_may_be_read_in_two_ways_is_refused_until_its_form_is_given(tmp_path):
    path = written(tmp_path, "time,a\n01/02/2024 00:00:00,1\n03/02/2024 00:00:00,2\n")
    with pytest.raises(DataError, match="time_format"):
        read_columns(path)
    time = read_columns(path, time_format="%d/%m/%Y %H:%M:%S").time_s
    assert time[1] - time[0] == 2 * 86_400


def test_names_that_are_given_win_over_those_that_are_known(tmp_path):
    path = written(tmp_path, "time,a,state,anomaly\n5,1,0,7\n6,2,1,8\n")
    columns = read_columns(path, time="", label="state", drop=("a",))
    assert columns.variables == ("time", "anomaly") and columns.time_s is None and columns.label.tolist() == [0, 1]


def test_lines_above_the_header_are_skipped(tmp_path):
    columns = read_columns(written(tmp_path, "plant,P1\na,b\n1,2\n"), skip_rows=1)
    assert columns.variables == ("a", "b") and columns.values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", "E319", "empty"),
        (b"  \n\n", "E319", "empty"),
        (b"a,b\n", "E319", "no row"),
        (b"a,b\nx,y\n", "E319", "no column of numbers"),
        (b"a,b\n1,2\n3\n", "E317", "Expected 2 columns"),
        (b"a,a\n1,2\n", "E317", "two columns 'a'"),
        (b"\x00\x01\x02\x00", "E317", "no text"),
        (b"time,a\n2024-01-01,1\n,2\n", "E314", "row 1"),
        (b"time,a\nsoon,1\nlater,2\n", "E314", "time_format"),
        (b"a,label\n1,0\n2,\n", "E317", "no label"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path, content, code, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read_columns(path)
    assert str(refused.value).startswith(code) and str(path) in str(refused.value)


def test_a_column_that_is_asked_for_and_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no column 'speed'; its columns: time, a, b"):
        read_columns(written(tmp_path, PLAIN), label="speed")


def test_a_file_that_is_no_parquet_says_so(tmp_path):
    with pytest.raises(DataError, match="no parquet file"):
        read_columns(written(tmp_path, PLAIN, name="a.parquet"))


def test_a_small_parquet_file_of_far_too_many_cells_is_refused_before_it_is_read(tmp_path, monkeypatch):
    pa.parquet.write_table(pa.table({"a": [1.0] * 1000, "b": [2.0] * 1000}), tmp_path / "a.parquet")
    monkeypatch.setattr(signal_file, "MOST_BYTES", 16_000)
    assert len(read_columns(tmp_path / "a.parquet").values) == 1000
    monkeypatch.setattr(signal_file, "MOST_BYTES", 15_999)
    monkeypatch.setattr(pa.parquet.ParquetFile, "read", lambda self: pytest.fail("it was read"))
    with pytest.raises(DataError, match="E317 .*declares 1000 rows of 2 columns, 16000 bytes as numbers, at most 15999"):
        read_columns(tmp_path / "a.parquet")


def test_whole_numbers_past_what_a_float_holds_exactly_are_rounded(tmp_path):
    assert read_columns(written(tmp_path, "a\n9007199254740993\n1\n")).values[0, 0] == np.float32(2**53)
