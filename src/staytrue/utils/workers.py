"""Runs jobs in several processes, one thread each; a job starts when the jobs it needs are done.

On small models two processes with one thread each are faster than one with two, and results do not depend on their
number. Workers are forked from a server that has imported the heavy packages once; this process does not import them.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from types import FrameType
from typing import Any

from staytrue.errors import StaytrueError, TrainingError

_HEAVY = [
    "staytrue.training.trainers",
    "staytrue.runs.train",
    "staytrue.runs.evaluate",
    "staytrue.data_selection.score_pool",
]  # imported once, then forked
# Without this glibc returns freed memory to the system and requests it again at every step: 10 % of a small run's time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
_MOST = 4  # more gain little on small models, and each takes almost a gigabyte
_LONGEST_END = 5  # seconds that a terminated worker may take


@dataclass(frozen=True)
class Job:
    """A call for another process: the function and its arguments must be picklable."""

    name: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    needs: frozenset[str] = frozenset()  # names of jobs that must be done before; unknown names count as done


def usable() -> int:
    """Return the default number of workers: one per usable core, at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


def run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any]]:
    """Run jobs, in order where their needs allow, and yield each with its result when it ends.

    A job that raises a StaytrueError stops only the jobs that need it.

    Raises:
        TrainingError: after the last job, if some failed; at once, if a worker process died.
        Exception: anything else that a job raises, at once.
    """
    for key, value in _KEEP_MEMORY.items():  # read once, when the server starts
        os.environ.setdefault(key, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    _start_server()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    done = False
    try:
        yield from _in_order(pool, list(jobs), workers)
        done = True
    except BrokenProcessPool:
        raise TrainingError("A worker process died, usually because memory ran out. Use fewer --workers.") from None
    finally:
        if not done:  # also when the caller stops early; unfinished jobs are run again next time
            for child in set(multiprocessing.active_children()) - before:
                if isinstance(child, context.Process):
                    child.terminate()
            _kill_server()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_server() -> None:
    """Start the server of the workers with Ctrl-C blocked, which would interrupt its imports with a traceback."""
    resource_tracker.ensure_running()  # which unblocks it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _kill_server() -> None:
    """Kill the server of the workers, and wait: it may be about to start a worker whose pool is gone."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is for multiprocessing to reap


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
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        waited = f" {len(waiting)} more waited for them." if waiting else ""
        raise TrainingError(f"{len(failed)} of the jobs failed, the others are done.{waited} {reasons}")
    if waiting:
        raise ValueError(f"these jobs need each other: {sorted(job.name for job in waiting)}")


def _begin() -> None:
    """Initialise a worker. It ignores Ctrl-C, since the parent process ends its workers."""
    signal.signal(signal.SIGTERM, _leave)
    import torch

    from staytrue.utils.console import quieten

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    quieten()
    gc.freeze()  # imported objects never die; without this the first collection of a training takes 0.25 s


def _leave(number: int, frame: FrameType | None) -> None:
    """End a worker that is terminated, with what a library started in it, such as the processes of a data loader.

    Without a frame a training has ended itself at the signal and only says so; its KeyboardInterrupt ends the job.
    Semaphores that a library made, such as that of tqdm's bars, are removed: multiprocessing reports them as leaked.
    """
    if frame is None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(_LONGEST_END)  # ends the process if a lock is held here
    for child in multiprocessing.active_children():
        child.terminate()
    _kill_server()
    util._run_finalizers(0)  # type: ignore[attr-defined]
    os._exit(128 + number)
