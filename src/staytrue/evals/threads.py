"""Concurrent slow calls: results come as the calls end, and a caller that stops early waits for none."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from staytrue.errors import StaytrueError

T = TypeVar("T")
R = TypeVar("R")

_WAKE = 0.5  # seconds; a wait without end misses a Ctrl-C that comes just before it


def concurrently(call: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Yield every item with the result of its call, as the calls end.

    A StaytrueError means that no other call can succeed. No further call begins, the results of calls in flight are
    yielded, because they may have been paid for, and then the error is raised. The threads are daemons, because a pool
    would wait for its calls at Ctrl-C.

    Raises:
        StaytrueError: the first one that a call raised; any other error at once.
    """
    waiting, lock, over, end = iter(items), threading.Lock(), threading.Event(), object()
    done: queue.Queue[Any] = queue.Queue()  # a pair of item and result, or the end of a thread: its error, or None

    def work() -> None:
        error = None
        try:
            while not over.is_set():
                with lock:
                    item: Any = next(waiting, end)
                if item is end:
                    break
                done.put((item, call(item)))
        except BaseException as raised:
            error = raised
            over.set()
        done.put(error)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    working, fatal = threads, None
    try:
        while working:
            try:
                result = done.get(timeout=_WAKE)
            except queue.Empty:
                continue
            if isinstance(result, tuple):
                yield result
                continue
            working -= 1
            if result is not None and not isinstance(result, StaytrueError):
                raise result
            fatal = fatal or result
    finally:
        over.set()
    if fatal is not None:
        raise fatal
