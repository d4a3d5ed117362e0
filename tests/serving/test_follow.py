"""Verdicts on rows as they arrive, and what a restart makes of them."""

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

from stages import errors, io, params
from stages.serving import follow
from stages.serving.follow import Follower
from stages.serving.series_model import choose
from stages.timeseries import artefact, build
from stages.training import Run
from tests.signals import signal_project
from tests.timeseries.series import segment, values

VARIABLES = ["cpu", "memory", "queue"]
ROWS = values(60, seed=1)
FUTURE = 7  # of the windows below


def fitted(name="classical.sub_pca", **options):
    return build(name, options, at=()).fit([segment(values(200))], [], Run(seed=0, quiet=True))


DETECTOR = fitted(window=FUTURE + 1)


def text(rows, first=0):
    return "".join(f"{first + number}," + ",".join(repr(float(value)) for value in row) + "\n" for number, row in enumerate(rows))


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "stream.csv"
    file.write_text("time," + ",".join(VARIABLES) + "\n")
    return file


def append(path, content):
    with path.open("a") as file:
        file.write(content)


def follower(path, detector=DETECTOR, threshold=5.0, model="one", **options):
    return Follower(path, detector, VARIABLES, model=model, threshold=threshold, state=path.with_suffix(".state"), **options)


def all_of(one, **options):
    return list(one.follow(threading.Event(), once=True, say=lambda text: None, **options))


def until(one, count, say=print):
    """As many verdicts, then asked to stop."""
    stop, found = threading.Event(), []
    for verdict in one.follow(stop, poll_s=0.001, say=say):
        found.append(verdict)
        if len(found) == count:
            stop.set()
    return found


def assert_scores(found, rows, detector=DETECTOR):
    assert [verdict.step for verdict in found] == list(range(len(rows)))
    expected = detector.score(torch.from_numpy(np.asarray(rows, dtype=np.float32)))
    torch.testing.assert_close(torch.tensor([verdict.score for verdict in found]), expected, rtol=1e-6, atol=1e-6)


def test_the_verdicts_of_a_whole_file_are_the_scores_of_the_stored_series(path):
    append(path, text(ROWS))
    found = all_of(follower(path))
    assert_scores(found, ROWS)
    assert [verdict.time for verdict in found] == [str(step) for step in range(60)]
    assert all(verdict.alarm == (verdict.score > 5.0) for verdict in found)


def test_rows_that_arrive_while_it_waits_are_judged(path):
    append(path, text(ROWS[:20]))
    writer = threading.Timer(0.05, lambda: append(path, text(ROWS[20:], first=20)))
    writer.start()
    found = until(follower(path), 60 - FUTURE)
    writer.join()
    assert_scores(found + all_of(follower(path)), ROWS)


@pytest.mark.parametrize("cuts", [(1,), (20, 21, 40), (50,)])
def test_a_restart_neither_repeats_nor_skips_a_row(path, cuts):
    append(path, text(ROWS))
    found = []
    for start, stop in zip((0, *cuts), cuts):
        found += until(follower(path), stop - start)
    assert_scores(found + all_of(follower(path)), ROWS)


def test_rows_that_arrive_between_two_runs_are_judged_by_the_second(path):
    append(path, text(ROWS[:30]))
    found = until(follower(path), 30 - FUTURE)
    append(path, text(ROWS[30:], first=30))
    found += all_of(follower(path))
    assert_scores(found, ROWS)
    assert [verdict.time for verdict in found] == [str(step) for step in range(60)]  # of rows that waited, too
    assert all_of(follower(path)) == []


def test_a_reader_that_goes_away_is_told_again_what_it_may_not_have_seen(path):
    append(path, text(ROWS))
    told = follower(path).follow(threading.Event(), once=True, save_every=20)
    seen = [next(told) for _ in range(30)]
    told.close()
    again = all_of(follower(path))
    assert [verdict.step for verdict in again] == list(range(again[0].step, 60)) and again[0].step <= len(seen)


def test_a_file_that_is_cut_off_is_said_to_be_and_its_rows_are_a_new_series(path):
    append(path, text(ROWS))
    first = until(follower(path), 40)
    path.write_text("time," + ",".join(VARIABLES) + "\n" + text(ROWS[:10]))
    said = []
    rest = list(follower(path).follow(threading.Event(), once=True, say=said.append))
    assert len(said) == 1 and "cut off or replaced" in said[0] and "step 0" in said[0]
    waited = [verdict for verdict in rest if verdict.step >= 40]
    assert [verdict.step for verdict in first + waited] == list(range(40 + FUTURE))  # those that waited for others are judged before
    assert_scores(rest[len(waited) :], ROWS[:10])


def test_a_row_that_cannot_be_read_is_judged_as_missing_and_says_why(path):
    append(path, text(ROWS[:20]) + "20,1.0\n" + text(ROWS[21:], first=21))
    found = all_of(follower(path))
    rows = ROWS.copy()
    rows[20] = np.nan
    assert_scores(found, rows)
    assert "expected 4 fields, got 2" in found[20].note and found[19].note is None
    assert found[20].note in follow.render(found[20])


def test_the_variables_that_add_most_are_named_with_their_shares(path):
    rows = ROWS.copy()
    rows[30, 1] += 40
    append(path, text(rows))
    verdict = all_of(follower(path, fitted("classical.pca")))[30]
    assert next(iter(verdict.added)) == "memory" and sum(verdict.added.values()) == pytest.approx(1) and verdict.alarm
    line = follow.render(verdict)
    assert line.startswith("step 30  30  score ") and "ALARM" in line and "memory" in line


def test_without_a_threshold_nothing_is_an_alarm_nor_its_absence(path):
    append(path, text(ROWS[:5]))
    assert [verdict.alarm for verdict in all_of(follower(path, threshold=None))] == [None] * 5


def test_a_file_that_is_not_there_is_waited_for_unless_it_is_wanted_once(path):
    content = path.read_text() + text(ROWS[:20])
    path.unlink()
    said = []

    def say(line):
        said.append(line)
        path.write_text(content)

    assert len(until(follower(path), 20 - FUTURE, say)) == 20 - FUTURE and "waiting for it" in said[0]
    path.unlink()
    with pytest.raises(errors.Missing, match=r"stream\.csv is not here"):
        all_of(follower(path))


def test_the_state_of_another_model_is_refused(path):
    append(path, text(ROWS[:20]))
    all_of(follower(path))
    with pytest.raises(errors.UserError, match="state of another model. Remove it"):
        follower(path, model="two")


def test_a_damaged_state_says_what_to_do(path):
    path.with_suffix(".state").write_bytes(b"nothing of the kind")
    with pytest.raises(errors.UserError, match="no state of a stream.*Remove it"):
        follower(path)


def test_an_idle_follower_writes_its_state_once(path, monkeypatch):
    append(path, text(ROWS[:20]))
    written = []
    monkeypatch.setattr(io, "write_model", lambda *arguments: written.append(arguments))
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert len(list(follower(path).follow(stop, poll_s=0.001))) == 20 - FUTURE and len(written) == 1


def test_an_interrupt_asks_to_stop_and_gives_the_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with follow.until_interrupted() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        assert signal.getsignal(signal.SIGINT) is before  # a second one ends at once
    assert signal.getsignal(signal.SIGINT) is before


def install(project, category="hard", model="sub-pca", vus=0.5, seeds=(0,), models=("sub-pca",)):
    """A fitted model and its results as train and evaluate leave them, in a project that has `models`."""
    signal_project(project)
    text = (project / "params.yaml").read_text()
    start, end = text.index("series:\n"), text.index("  protocol:\n")
    entries = "".join(f"    {name}:\n      detector: classical.sub_pca\n" for name in models)
    runs = "".join(f"    server-{name}:\n      dataset: server\n      model: {name}\n      code: x\n      maths: x\n" for name in models)
    (project / "params.yaml").write_text(f"{text[:start]}series:\n  datasets: {{}}\n  models:\n{entries}  runs:\n{runs}{text[end:]}")
    for seed in seeds:
        config = {"model": model, "detector": "classical.sub_pca", "options": {"window": FUTURE + 1}, "seed": seed, "variables": VARIABLES}
        artefact.save(project / artefact.folder("server", model, model, category, seed), DETECTOR, config, [])
    path = project / "metrics/server" / model / "thresholds.json"
    known = io.read_json(path) if path.is_file() else {}
    io.write_json(path, known | {category: {"0.01": [{"value": 5.0}]}})
    about = {"dataset": "server", "model": model, "regime": "unsup-contaminated", "seeds": list(seeds)}
    io.write_json(project / f"metrics/server/{model}.json", about | {"mean": {"vus_pr": {"value": vus}}})
    return params.load(project / "params.yaml")


def test_the_model_with_the_highest_vus_pr_answers_where_none_is_named(tmp_path):
    install(tmp_path, model="poor", vus=0.2, models=("poor", "good"))
    settings = install(tmp_path, model="good", vus=0.6, seeds=(9, 10), models=("poor", "good"))
    chosen = choose(settings, tmp_path)
    assert (chosen.name, chosen.category, chosen.threshold, chosen.place.name) == ("good", "hard", 5.0, "seed9")
    assert choose(settings, tmp_path, model="poor").name == "poor" and chosen.variables() == VARIABLES


def test_the_model_that_the_report_recommends_answers_first(tmp_path):
    install(tmp_path, model="poor", vus=0.2, models=("poor", "good"))
    settings = install(tmp_path, model="good", vus=0.6, models=("poor", "good"))
    io.write_json(tmp_path / "metrics/report/verdicts.json", {"server, unsup-contaminated": "poor"})
    assert choose(settings, tmp_path).name == "poor"


def test_what_is_not_clear_is_asked_and_what_is_unknown_is_named(tmp_path):
    with pytest.raises(errors.Missing, match="no results of a model of signals"):
        choose(params.load(signal_project(tmp_path / "new") / "params.yaml"), tmp_path / "new")
    install(tmp_path)
    settings = install(tmp_path, category="easy")
    with pytest.raises(errors.UserError, match="which category.*hard, easy.*--category hard"):
        choose(settings, tmp_path)
    with pytest.raises(errors.UserError, match="no model 'sub-pac'.*did you mean 'sub-pca'"):
        choose(settings, tmp_path, model="sub-pac", category="hard")


def test_the_command_judges_a_file_and_goes_on_where_it_stopped(assay, path, tmp_path):
    install(tmp_path)
    append(path, text(ROWS[:40]))
    code, out, err = assay("predict", "stream.csv", "--once", "--json")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["step"] for row in found] == list(range(40)) and found[0]["threshold"] == 5.0
    append(path, text(ROWS[40:], first=40))
    code, out, _ = assay("predict", "stream.csv", "--once", "--threshold", "0")
    lines = out.splitlines()
    assert code == 0 and "sub-pca on server / hard; threshold 0" in lines[0]
    assert len(lines) == 21 and lines[1].startswith("step 40  40  score ") and "ALARM" in lines[1]


def test_the_command_takes_one_file(assay, path, tmp_path):
    install(tmp_path)
    code, _, err = assay("predict", "stream.csv", "other.csv", "--follow")
    assert code == 1 and "one CSV file" in err
