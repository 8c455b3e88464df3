"""Concurrent slow calls: results come as the calls end, and a caller that stops early waits for none."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from staytrue.errors import StaytrueError

T = TypeVar("T")
R = TypeVar("R")

_WAKE = 0.5  # seconds


def concurrently(call: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Yield every item with the result of its call, as the calls end.

    A StaytrueError means that no other call can succeed. No further call begins, the results of calls in flight are
    yielded, because they may have been paid for, and then the error is raised. The threads are daemons, because a pool
    would wait for its calls at Ctrl-C.

    Raises:
        StaytrueError: the first one that a call raised; any other error at once.
    """
    waiting, lock, over = iter(items), threading.Lock(), threading.Event()
    done: queue.Queue[tuple[T, R | BaseException] | None] = queue.Queue()

    def work() -> None:
        while not over.is_set():
            with lock:
                item = next(waiting, done)
            if item is done:
                break
            try:
                result: R | BaseException = call(item)  # type: ignore[arg-type]
            except BaseException as error:
                result = error
                if isinstance(error, StaytrueError):
                    over.set()
            done.put((item, result))  # type: ignore[arg-type]
        done.put(None)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    ended, fatal = 0, None
    try:
        while ended < threads:
            pair = _get(done)
            if pair is None:
                ended += 1
            elif isinstance(pair[1], StaytrueError):
                fatal = fatal or pair[1]
            elif isinstance(pair[1], BaseException):
                raise pair[1]
            else:
                yield pair  # type: ignore[misc]
    finally:
        over.set()
    if fatal is not None:
        raise fatal


def _get(done: queue.Queue[T]) -> T:
    """The next item; wakes now and then, because a wait without end misses a Ctrl-C that comes just before it."""
    while True:
        try:
            return done.get(timeout=_WAKE)
        except queue.Empty:
            continue
