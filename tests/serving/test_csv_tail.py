"""Rows of a file that is still being written."""

import math

import pytest

from stages.errors import UserError
from stages.serving.csv_tail import CsvTail, Replaced


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stream.csv"


def append(path, text):
    with path.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def values(rows):
    return [row.values for row in rows]


def test_rows_come_once_and_a_line_without_its_end_waits(path):
    append(path, "a,b\n1,2\n3,")
    tail = CsvTail(path, ["a", "b"])
    assert values(tail.rows()) == [[1, 2]]
    assert values(tail.rows()) == []
    append(path, "4\n5,6\n")
    assert values(tail.rows()) == [[3, 4], [5, 6]]


def test_a_header_without_its_end_waits(path):
    append(path, "a,")
    tail = CsvTail(path, ["b"])
    assert values(tail.rows()) == []
    append(path, "b\n1,2\n")
    assert values(tail.rows()) == [[2]]


def test_the_last_line_needs_no_end_where_nothing_more_will_come(path):
    append(path, "a\n1\n2")
    tail = CsvTail(path, ["a"])
    assert values(tail.rows(last_line_ends=True)) == [[1], [2]]
    append(path, "\n3\n")
    assert values(tail.rows()) == [[3]]


def test_columns_are_found_by_name_and_others_passed_over(path):
    append(path, "Time,c,label,b\n08:00,3,1,2\n")
    [row] = CsvTail(path, ["b", "c"]).rows()
    assert row == ([2, 3], "08:00", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a;b\n1,5;-2\n", [1.5, -2]),
        ("a\tb\n1\t2e3\n", [1, 2000]),
        ("\ufeffa,b\r\n1,2\r\n", [1, 2]),
        ('"a","b"\n"1", 2\n', [1, 2]),
        ("a,b\n\n1,2\n", [1, 2]),
    ],
    ids=["decimal commas", "tabs", "byte-order mark, CRLF", "quotes", "blank line"],
)
def test_the_usual_dialects_are_read(path, text, expected):
    append(path, text)
    assert values(CsvTail(path, ["a", "b"]).rows()) == [expected]


def test_what_is_no_number_is_missing_and_said_to_be(path):
    append(path, b"a,b\n,2\nnan,oops\ninf,4\n1\n1,2,3\n" + b"\xff\xfe,5\n")
    rows = list(CsvTail(path, ["a", "b"]).rows())
    assert [[math.isfinite(value) for value in row.values] for row in rows] == [
        [False, True],
        [False] * 2,
        [False, True],
        *[[False] * 2] * 2,
        [False, True],
    ]
    assert rows[0].note == "a is missing"
    assert rows[1].note == "a is missing, b is no finite number ('oops') and counts as missing"
    assert rows[2].note.startswith("a is no finite number ('inf')")
    assert rows[3].note == "expected 2 fields, got 1: all values count as missing" and "got 3" in rows[4].note


def test_a_header_without_a_variable_names_what_is_there(path):
    append(path, "time,cpu\n")
    with pytest.raises(UserError, match=r"no memory\. It has: time, cpu"):
        list(CsvTail(path, ["cpu", "memory"]).rows())


def test_a_variable_that_two_columns_are_called_is_an_error(path):
    append(path, "a,a\n")
    with pytest.raises(UserError, match="two columns are called a"):
        list(CsvTail(path, ["a"]).rows())


def test_a_later_tail_goes_on_from_where_an_earlier_one_stopped(path):
    append(path, "a,b\n1,2\n3,4\n")
    first = CsvTail(path, ["b"])
    assert values(first.rows()) == [[2], [4]]
    append(path, "5,6\n")
    assert values(CsvTail(path, ["b"], first.offset, first.head).rows()) == [[6]]


@pytest.mark.parametrize("change", ["a,b\n1,2\n", "a,b\n9,2\n3,4\n5,6\n"], ids=["cut off", "written anew"])
def test_a_file_that_is_shorter_or_begins_with_something_else_is_another(path, change):
    append(path, "a,b\n1,2\n3,4\n")
    tail = CsvTail(path, ["a"])
    list(tail.rows())
    path.write_text(change)
    with pytest.raises(Replaced, match=r"12 bytes were read"):
        list(tail.rows())


def test_a_file_that_is_replaced_by_itself_and_more_goes_on(path, tmp_path):
    append(path, "a\n1\n")
    tail = CsvTail(path, ["a"])
    list(tail.rows())
    (tmp_path / "new.csv").write_text("a\n1\n2\n")
    (tmp_path / "new.csv").replace(path)
    assert values(tail.rows()) == [[2]]


def test_a_line_that_never_ends_is_no_csv(path, monkeypatch):
    monkeypatch.setattr("stages.serving.csv_tail.BLOCK", 64)
    append(path, "a\n" + "1" * 100)
    with pytest.raises(UserError, match="no line ends within 64 bytes"):
        list(CsvTail(path, ["a"]).rows())
