"""Many calls at a time: each given once, a fatal one ends them, and none is waited for."""

import threading
import time

import pytest

from staytrue.errors import RequestError
from staytrue.evals.threads import each


def test_every_item_is_given_once_with_its_own_result():
    assert sorted(each(lambda i: i * i, range(50), 8)) == [(i, i * i) for i in range(50)]


def test_a_forgiven_error_is_given_and_another_is_raised():
    def call(i):
        if i == 3:
            raise ValueError(i)
        return i

    found = dict(each(call, range(5), 2, forgiven=ValueError))
    assert isinstance(found.pop(3), ValueError)
    assert found == {i: i for i in (0, 1, 2, 4)}
    with pytest.raises(ValueError, match="3"):
        list(each(call, range(5), 2))


def test_after_a_fatal_error_what_is_in_the_air_is_given_and_nothing_is_begun():
    begun, both = [], threading.Barrier(2)

    def call(i):
        begun.append(i)
        both.wait()
        if i == 0:
            raise RequestError("over")
        time.sleep(0.05)
        return i

    given = []
    with pytest.raises(RequestError, match="over"):
        given.extend(found for found in each(call, range(100), 2))
    assert sorted(begun) == [0, 1]


def test_who_stops_asking_waits_for_no_call():
    stuck = threading.Event()
    calls = each(lambda i: i if i == 0 else stuck.wait(), range(3), 3)
    assert next(calls) == (0, 0)
    begun = time.monotonic()
    calls.close()
    assert time.monotonic() - begun < 1
    stuck.set()
