"""The engine: what a pool gives is what this process gives, and nothing that befalls a worker is lost or runs on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from stages import engine
from stages.engine import Unit
from stages.errors import UserError

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


def pool(function, units, **options):
    return engine.run(function, units, processes=2, preload=("torch",), **options)


def seeds(count):
    return [Unit(f"seed{seed}", {"seed": seed}) for seed in range(count)]


def compute(seed):
    """Sums whose last bits depend on the number of threads."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(160, 120, generator=generator)
    singular = torch.linalg.svdvals(matrix.T @ matrix)
    image = torch.nn.functional.conv2d(matrix[None, None], matrix[None, None, :7, :7]).logsumexp((2, 3))
    product = matrix.numpy() @ matrix.numpy().T
    return singular.numpy().tobytes() + image.numpy().tobytes() + product.tobytes()


def log(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


def same(seed):
    return seed


def last(seed, folder):
    """Seed 0 waits until seed 3 is through."""
    while seed == 0 and not (Path(folder) / "3").exists():
        time.sleep(0.01)
    (Path(folder) / str(seed)).touch()
    return seed


def fragile(seed, folder):
    """Seed 1 raises, 2 exits, 3 returns what cannot be pickled; the rest are fine."""
    log(Path(folder) / str(seed), "began")
    if seed == 1:
        raise ArithmeticError("the covariance is singular")
    if seed == 2:
        sys.exit("enough")
    return threading.Lock() if seed == 3 else seed


def mortal(seed, folder, victims, lives):
    """The victims kill their worker while they have been started fewer than `lives` times."""
    path = Path(folder) / str(seed)
    log(path, "began")
    if seed in victims and len(path.read_text().split()) <= lives:
        os.kill(os.getpid(), signal.SIGKILL)
    return seed


def regicide(seed, folder):
    """Kills the fork server, once."""
    path = Path(folder) / "done"
    if not path.exists():
        path.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return seed


def threads_seen(seed):
    import numpy  # noqa: F401  so that its BLAS is among the libraries looked at
    import threadpoolctl

    libraries = {library["num_threads"] for library in threadpoolctl.threadpool_info()}
    return torch.get_num_threads(), libraries, {os.environ[name] for name in engine.THREAD_VARIABLES}


def parcel(seed, weight):
    return seed


class Weight:
    """Notes in this process when it leaves for a worker."""

    sent = 0

    def __reduce__(self):
        Weight.sent += 1
        return int, (0,)


def test_outcomes_stand_in_the_order_of_units_and_are_reported_as_they_come(tmp_path):
    seen = []
    outcomes = pool(
        last,
        [Unit(unit.key, {**unit.arguments, "folder": str(tmp_path)}) for unit in seeds(4)],
        done=lambda outcome: seen.append(outcome.key),
    )
    assert [outcome.value for outcome in outcomes] == [0, 1, 2, 3]
    assert seen.index("seed0") > seen.index("seed2") and sorted(seen) == [outcome.key for outcome in outcomes]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pool_computes_the_same_bits_as_this_process(threads):
    torch.set_num_threads(3 - threads)  # what the caller had set must not show in either
    try:
        assert pool(compute, seeds(4), threads=threads) == engine.run(compute, seeds(4), threads=threads)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_library_is_held_to_the_threads_asked_for(processes):
    for threads in (2, 1):
        for outcome in engine.run(threads_seen, seeds(2), processes=processes, threads=threads):
            assert outcome.value == (threads, {threads}, {str(threads)}), outcome.error


def test_the_callers_threads_and_environment_come_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        engine.run(same, seeds(1), threads=1)
        pool(same, seeds(2))
        assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2" and "MKL_NUM_THREADS" not in os.environ
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_crash_is_an_outcome_with_its_traceback_and_the_others_finish(processes, tmp_path):
    units = [Unit(str(seed), {"seed": seed, "folder": str(tmp_path)}) for seed in (0, 1, 2, 4)]
    fine, crashed, ended, last = engine.run(fragile, units, processes=processes)
    assert (fine.value, fine.error, last.value, last.error) == (0, None, 4, None)
    assert crashed.value is None and "in fragile" in crashed.error and "the covariance is singular" in crashed.error
    assert ended.value is None and "SystemExit: enough" in ended.error
    assert all((tmp_path / str(seed)).read_text() == "began\n" for seed in (0, 1, 2, 4))


def test_a_value_that_cannot_be_pickled_is_an_error_and_not_a_dead_worker(tmp_path):
    outcomes = pool(fragile, [Unit(str(seed), {"seed": seed, "folder": str(tmp_path)}) for seed in (3, 4, 5)])
    assert "cannot pickle" in outcomes[0].error and [outcome.value for outcome in outcomes[1:]] == [4, 5]
    assert (tmp_path / "3").read_text() == "began\n"


@posix
def test_a_unit_whose_worker_was_killed_is_run_again(tmp_path):
    units = [Unit(str(seed), {"seed": seed, "folder": str(tmp_path), "victims": [1, 2], "lives": 1}) for seed in range(5)]
    assert [(outcome.value, outcome.error) for outcome in pool(mortal, units)] == [(seed, None) for seed in range(5)]


@posix
def test_a_unit_that_kills_its_worker_twice_fails_alone(tmp_path):
    """Alone: no other unit is started twice, though others were in flight when the worker died."""
    units = [Unit(str(seed), {"seed": seed, "folder": str(tmp_path), "victims": [1], "lives": 9}) for seed in range(5)]
    outcomes = pool(mortal, units)
    assert [outcome.value for outcome in outcomes] == [0, None, 2, 3, 4]
    assert "unit '1' was killed by SIGKILL" in outcomes[1].error and "compute.processes" in outcomes[1].error
    assert [len((tmp_path / str(seed)).read_text().split()) for seed in range(5)] == [1, 2, 1, 1, 1]


@posix
def test_a_killed_fork_server_is_replaced(tmp_path):
    assert [
        outcome.value for outcome in pool(regicide, [Unit(str(seed), {"seed": seed, "folder": str(tmp_path)}) for seed in range(3)])
    ] == [0, 1, 2]


def test_a_worker_that_died_idle_is_given_no_unit():
    context, workers = engine._context(["torch"]), []
    dead = engine._idle(workers, context, 1)
    dead.process.kill()
    dead.process.join()
    living = engine._idle(workers, context, 1)
    assert workers == [living] and living.process.is_alive()
    living.end()


def test_no_more_units_leave_than_there_are_processes():
    Weight.sent, in_flight, finished = 0, [], []

    def done(outcome):
        in_flight.append(Weight.sent - len(finished))
        finished.append(outcome)

    pool(parcel, [Unit(str(seed), {"seed": seed, "weight": Weight()}) for seed in range(8)], done=done)
    assert Weight.sent == 8 and max(in_flight) == 2


def test_keys_given_twice_are_refused():
    with pytest.raises(ValueError, match="more than one of seed0; add what tells them apart"):
        engine.run(same, seeds(2) + seeds(1))


def test_an_error_in_done_stops_the_run_and_leaves_no_child():
    def done(outcome):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pool(same, seeds(4), done=done)
    assert multiprocessing.active_children() == []


SCRIPT = """
import os, signal, sys, time
from stages import engine

def unit(folder, name):
    print(f"working on {name},", end=" "); time.sleep(0.5); print("half a second later")
    open(os.path.join(folder, str(os.getpid())), "w").close()
    while os.path.exists(os.path.join(folder, "wait")):
        time.sleep(0.05)
    return "colorsys" in sys.modules

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background, tests too
    units = [engine.Unit(name, dict(folder=sys.argv[1], name=name)) for name in ("bottle", "cable")]
    print([outcome.value for outcome in engine.run(unit, units, processes=2, preload=["colorsys"])])
"""


def start(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pids").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pids")]
    with (tmp_path / "stderr").open("w") as stderr:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True)


def test_a_script_of_its_own_gets_preloaded_workers_whose_prints_come_through(tmp_path):
    parent = start(tmp_path)
    *lines, last = parent.communicate()[0].splitlines()
    assert sorted(lines) == [f"working on {name}, half a second later" for name in ("bottle", "cable")]
    assert last == "[True, True]"


@posix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(how, tmp_path):
    """Neither a killed parent, nor one told to end, nor Ctrl-C, which reaches parent and workers alike."""
    parent = start(tmp_path)
    (tmp_path / "pids" / "wait").touch()
    while len(pids := [int(path.name) for path in (tmp_path / "pids").glob("[0-9]*")]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    family = [process for process in psutil.process_iter() if _session(process.pid) == parent.pid]
    assert set(pids) < {process.pid for process in family}
    os.killpg(parent.pid, how) if how == signal.SIGINT else parent.send_signal(how)
    parent.wait(timeout=60)
    _, alive = psutil.wait_procs([process for process in family if process.pid != parent.pid], timeout=30)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    assert not alive
    assert (tmp_path / "stderr").read_text().count("Traceback") == (how == signal.SIGINT), "a worker does not answer Ctrl-C"


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def mended_by(seed: int) -> None:
    raise UserError("expected a, got b; write a") if seed else ZeroDivisionError("seed 0")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_of_the_user_in_many_units_is_one_line_and_exit_code_1(processes, capsys):
    outcomes = engine.run(mended_by, seeds(4)[1:], processes=processes)
    assert engine.exit_code("train", outcomes) == 1
    assert capsys.readouterr().err == "train: UserError: expected a, got b; write a\n"


def test_a_defect_in_one_unit_outweighs_a_mistake_in_another(capsys):
    assert engine.exit_code("train", engine.run(mended_by, seeds(2))) == 2
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: seed 0" in shown and "Traceback" in shown and "train: UserError: expected a" in shown
    assert engine.exit_code("train", engine.run(same, seeds(2))) == 0


def test_debugging_shows_where_a_mistake_was_found(monkeypatch, capsys):
    monkeypatch.setenv("ASSAY_DEBUG", "1")
    engine.exit_code("train", engine.run(mended_by, seeds(2)[1:]))
    assert "in mended_by" in capsys.readouterr().err
