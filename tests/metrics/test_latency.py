"""How often a call is timed, by calls that count themselves."""

import time

from stages.metrics.latency import measure


def counted(pause: float = 0.0):
    calls = []
    return calls, lambda: (calls.append(1), time.sleep(pause))


def test_warm_up_and_repeats_are_as_many_as_are_asked_for():
    calls, call = counted()
    measured = measure(call, warmup=3, repeats=7, seconds=10)
    assert (measured.warmup, measured.repeats, len(calls)) == (3, 7, 10)


def test_neither_the_warm_up_nor_the_repeats_outlast_the_time_limit():
    _, call = counted(pause=0.02)
    measured = measure(call, warmup=1000, repeats=1000, seconds=0.1)
    assert 1 <= measured.warmup <= 6 and 1 <= measured.repeats <= 6 and measured.p50_ms >= 20


def test_no_warm_up_is_none_and_one_repeat_is_always_made():
    calls, call = counted(pause=0.01)
    assert measure(call, warmup=0, repeats=5, seconds=0)[2:] == (1, 0) and len(calls) == 1
