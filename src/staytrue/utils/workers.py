"""Jobs on several processes, one thread each: a job starts once those it needs are done.

Two processes with one thread each do more than one with two on small models, and a result does not depend on how many
there are. Workers are forked from a server that has imported everything heavy once; this process imports none of it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from staytrue.errors import StaytrueError, TrainingError

_HEAVY = [
    "staytrue.training.trainers",
    "staytrue.runs.train",
    "staytrue.runs.evaluate",
    "staytrue.data_selection.score",
]  # imported once, then forked
# glibc gives freed memory back to the system and asks for it again at every step; a tenth of a small run's time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
_MOST = 4  # a study of small models gains little from more, and each takes most of a gigabyte


@dataclass(frozen=True)
class Job:
    """A call for another process: the function and its arguments must be picklable."""

    name: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    needs: frozenset[str] = frozenset()  # names of jobs that come first; one that is not in the list is done


def usable() -> int:
    """How many workers this machine should have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


def run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    """Run jobs, earlier ones first where they can; gives each with its result as it ends.

    A job that is refused or fails in a way of ours does not stop the others, but for those that need it.

    Raises:
        TrainingError: at the end, the jobs that failed; or at once, a worker died. Anything else that a job raises.
    """
    for key, value in _KEEP_MEMORY.items():  # read once, when the server starts
        os.environ.setdefault(key, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    done = False
    try:
        yield from _in_order(pool, list(jobs), workers)
        done = True
    except BrokenProcessPool:
        raise TrainingError("A worker process died, usually for want of memory; give fewer --workers.") from None
    finally:
        own = [c for c in set(multiprocessing.active_children()) - before if isinstance(c, context.Process)]
        for child in [] if done else own:  # also when nobody wants the rest; what is half done is made again
            child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, waiting: list[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    left = {job.name for job in waiting}
    running: dict[Future[Any], Job] = {}
    failed: dict[str, StaytrueError] = {}
    while waiting or running:
        ready = [job for job in waiting if not job.needs & left]
        for job in ready[: workers - len(running)]:
            waiting.remove(job)
            running[pool.submit(job.call, *job.args)] = job
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED)[0]:
            job = running.pop(future)
            try:
                result = future.result()
            except StaytrueError as error:
                failed[job.name] = error
                continue
            left.discard(job.name)
            yield job, result
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        waited = f" {len(waiting)} more waited for them." if waiting else ""
        raise TrainingError(f"{len(failed)} of the jobs failed, the others are done.{waited} {told}")
    if waiting:
        raise ValueError(f"these jobs need each other: {sorted(job.name for job in waiting)}")


def _begin() -> None:
    """A worker's first act. Ctrl-C is the parent's business: it ends its workers itself."""
    import torch

    from staytrue.utils.console import quieten

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    quieten()
    gc.freeze()  # what was imported stays; training begins with a collection, a quarter of a second through all of it
