"""The search around a judge that only computes with the number it is given."""

import json
import signal
import subprocess
import sys
import time

import pytest

from stages.timeseries.search.ledger import Ledger
from stages.timeseries.search.plan import Plan
from stages.timeseries.search.selection import QUALITY
from stages.timeseries.search.two_stage import Limits, run_stage, shuffled

SCRIPT = """
import sys, time
from pathlib import Path
from stages.timeseries.search import two_stage
from stages.timeseries.search.plan import Plan

def judge(plan, stage, number):
    time.sleep(0.01)
    return {"number": number, "figures": {"val_roc_auc": number * 37 % 101 / 101}, "history": [], "seconds": 0.01}

if __name__ == "__main__":
    two_stage.run_stage(Plan(), "quick", range(100), Path(sys.argv[1]), two_stage.Limits(), judge=judge)
"""


def _judge(plan, stage, number):
    return {"number": number, "figures": {QUALITY: number / 1000}, "history": [], "seconds": 0.0}


def _never(plan, stage, number):
    raise AssertionError(f"{number} was done again")


def test_a_killed_search_loses_what_was_in_flight_and_ends_as_one_that_was_not(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, whole], check=True, capture_output=True)
    process = subprocess.Popen([sys.executable, script, killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = killed / "quick.jsonl"
    while not (ledger.is_file() and ledger.read_bytes().count(b"\n") >= 5):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ledger.read_bytes()
    assert 5 <= before.count(b"\n") < 100
    subprocess.run([sys.executable, script, killed], check=True, capture_output=True)
    assert ledger.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert ledger.read_bytes() == (whole / "quick.jsonl").read_bytes()


def test_what_is_finished_is_never_done_again(tmp_path):
    first = run_stage(Plan(), "quick", range(20), tmp_path, Limits(), judge=_judge)
    assert run_stage(Plan(), "quick", range(20), tmp_path, Limits(), judge=_never) == first
    assert [line["number"] for line in first] == list(range(20))


def test_the_first_n_are_a_random_sample_that_the_seed_fixes_and_a_larger_n_extends():
    every = shuffled(Plan(), range(432))
    assert sorted(every) == list(range(432)) and every != list(range(432))
    assert every == shuffled(Plan(), range(432)) and every != shuffled(Plan(seed=1), range(432))
    assert shuffled(Plan(), range(0, 432, 7)) == [number for number in every if number % 7 == 0]


def test_most_combinations_counts_earlier_ones(tmp_path):
    for most in (5, 8):
        found = run_stage(Plan(), "quick", range(432), tmp_path, Limits(combinations=most), judge=_judge)
        assert [line["number"] for line in found] == sorted(shuffled(Plan(), range(432))[:most])
    assert len((tmp_path / "quick.jsonl").read_text().splitlines()) == 8


def test_no_combination_begins_after_the_budget(tmp_path):
    assert run_stage(Plan(), "quick", range(40), tmp_path, Limits(budget_s=0.0), judge=_judge) == []

    def slow(plan, stage, number):
        time.sleep(0.05)
        return _judge(plan, stage, number)

    found = run_stage(Plan(), "quick", range(40), tmp_path, Limits(budget_s=0.22), judge=slow)
    done = list(Ledger(tmp_path / "quick.jsonl").finished)
    assert 1 <= len(found) <= 6 and done == shuffled(Plan(), range(40))[: len(done)]


def test_a_crash_lets_the_others_finish_and_then_fails(tmp_path, capfd):
    def judge(plan, stage, number):
        return _judge(plan, stage, number) if number != 3 else 1 / 0

    with pytest.raises(SystemExit) as stopped:
        run_stage(Plan(), "quick", range(6), tmp_path, Limits(), judge=judge)
    assert stopped.value.code == 2 and "quick/003" in capfd.readouterr().err
    assert sorted(Ledger(tmp_path / "quick.jsonl").finished) == [0, 1, 2, 4, 5]


def test_a_torn_line_is_said(tmp_path):
    run_stage(Plan(), "quick", range(3), tmp_path, Limits(), judge=_judge)
    path = tmp_path / "quick.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    said = []
    assert len(run_stage(Plan(), "quick", range(3), tmp_path, Limits(), said.append, _judge)) == 3
    assert "half written" in said[0]


def test_a_plan_survives_json():
    plan = Plan(grid="improved", regime="synth-erase")
    assert Plan.of_json(json.loads(json.dumps(plan.as_json()))) == plan


def test_the_learning_rate_doubles_from_32_to_256():
    assert Plan().quick._replace(batch_size=32).learning_rate == pytest.approx(1e-3)
    assert Plan().quick._replace(batch_size=256).learning_rate == pytest.approx(2e-3)
