"""Progress is a few plain lines where nobody watches, and nothing where it is not wanted."""

import pytest

from stages import progress as module
from stages.progress import progress


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_AFTER_S", 0.0)


def lines(capsys, total, step, **given):
    with progress("work", total, **given) as advance:
        for _ in range(given.get("done", 0), total, step):
            advance(min(step, total))
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout belongs to results
    return captured.err.splitlines()


def test_a_log_gets_a_line_every_tenth_of_the_way_and_the_end(capsys):
    said = lines(capsys, total=1000, step=1)
    assert len(said) == 10 and said[0].startswith("work: 100/1000, ") and said[-1] == "work: 1000/1000, 0 s left"


def test_few_large_steps_are_a_line_each(capsys):
    assert [line.split(",")[0] for line in lines(capsys, total=4, step=2)] == ["work: 2/4", "work: 4/4"]


def test_what_was_done_before_counts_and_is_not_said_again(capsys):
    said = lines(capsys, total=100, step=10, done=80)
    assert [line.split(",")[0] for line in said] == ["work: 90/100", "work: 100/100"]


def test_work_of_a_moment_leaves_no_line(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_AFTER_S", 60.0)
    assert lines(capsys, total=100, step=1) == []


def test_quiet_says_nothing(capsys):
    assert lines(capsys, total=10, step=1, quiet=True) == []
