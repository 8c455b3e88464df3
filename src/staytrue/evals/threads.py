"""Many slow calls at a time, each given as it ends, and none waited for once nobody wants the rest."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from staytrue.errors import StaytrueError

T = TypeVar("T")
R = TypeVar("R")


def each(
    call: Callable[[T], R], items: Iterable[T], threads: int, forgiven: type[Exception] | tuple[()] = ()
) -> Iterator[tuple[T, R | Exception]]:
    """Every item with what its call gave, or with the forgiven error that it raised, as the calls end.

    A StaytrueError means that no other call can succeed: nothing more is begun, what is in the air is given, since it
    may have been paid for, and then it is raised. The threads are daemons: who stops asking (Ctrl-C) waits for none.

    Raises:
        StaytrueError: of the first call that raised one; any other error at once.
    """
    ahead, turn, over = iter(items), threading.Lock(), threading.Event()
    done: queue.Queue[tuple[T, R | BaseException] | None] = queue.Queue()

    def work() -> None:
        while not over.is_set():
            with turn:
                item = next(ahead, done)
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
            found = done.get()
            if found is None:
                ended += 1
            elif isinstance(found[1], StaytrueError):
                fatal = fatal or found[1]
            elif isinstance(found[1], BaseException) and not isinstance(found[1], forgiven):
                raise found[1]
            else:
                yield found  # type: ignore[misc]
    finally:
        over.set()
    if fatal is not None:
        raise fatal
