"""Many calls at a time: each given once, a fatal one ends them, and none is waited for."""

import signal
import threading
import time

import pytest

from staytrue.errors import RequestError
from staytrue.evals.threads import concurrently


def test_every_item_is_given_once_with_its_own_result():
    assert sorted(concurrently(lambda i: i * i, range(50), 8)) == [(i, i * i) for i in range(50)]


def test_an_error_that_is_none_of_ours_is_raised():
    def call(i):
        if i == 3:
            raise ValueError(i)
        return i

    with pytest.raises(ValueError, match="3"):
        list(concurrently(call, range(5), 2))


def test_after_a_fatal_error_what_is_in_the_air_is_given_and_nothing_is_begun():
    begun, both = [], threading.Barrier(2)

    def call(i):
        begun.append(i)
        both.wait()
        if i == 0:
            raise RequestError("over")
        time.sleep(0.05)
        return i

    results = []
    with pytest.raises(RequestError, match="over"):
        results.extend(result for result in concurrently(call, range(100), 2))
    assert sorted(begun) == [0, 1]


def test_who_stops_asking_waits_for_no_call():
    stuck = threading.Event()
    calls = concurrently(lambda i: i if i == 0 else stuck.wait(), range(3), 3)
    assert next(calls) == (0, 0)
    begun = time.monotonic()
    calls.close()
    assert time.monotonic() - begun < 1
    stuck.set()


def test_ctrl_c_ends_a_wait_that_the_signal_itself_does_not_interrupt():
    stuck = threading.Event()

    def call(_):
        time.sleep(0.2)  # until the caller waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # as one that comes just before the wait
        stuck.wait(20)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(concurrently(call, range(1), 1))
    assert time.monotonic() - begun < 5
    stuck.set()
