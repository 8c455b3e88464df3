"""Jobs on several processes: in order, after those they need, and nothing is left running."""

import multiprocessing
import os
import time

import pytest

from holdfast import workers
from holdfast.errors import RecipeError, TrainingError
from holdfast.workers import Job


def threads():
    import torch

    return os.getpid(), torch.get_num_threads()


def fail():
    raise RecipeError("no such thing; take another")


def die():
    os._exit(9)


def test_a_job_starts_after_those_it_needs(tmp_path):
    marks = [tmp_path / name for name in "abc"]
    first = Job("first", time.sleep, (0.5,))
    second = Job("second", marks[0].touch, needs=frozenset({"first", "made long ago"}))
    third = Job("third", marks[1].touch)
    ended = [job.name for job, _ in workers.run([second, first, third], 2)]
    assert ended.index("first") < ended.index("second")
    assert ended[0] == "third"  # nothing to wait for, and a worker free
    assert marks[0].exists()


def test_each_worker_has_one_thread_and_is_another_process():
    found = [result for _, result in workers.run([Job(str(i), threads) for i in range(4)], 2)]
    assert {count for _, count in found} == {1}
    assert os.getpid() not in {pid for pid, _ in found}


def test_a_job_that_fails_is_told_at_the_end_and_the_others_are_done(tmp_path):
    jobs = [
        Job("wrong", fail),
        Job("waits", tmp_path.touch, needs=frozenset({"wrong"})),
        Job("right", (tmp_path / "x").touch),
    ]
    with pytest.raises(TrainingError, match=r"1 of the jobs failed.* 1 more waited .*wrong: no such thing"):
        list(workers.run(jobs, 2))
    assert (tmp_path / "x").exists()


def test_what_nobody_expected_is_raised_at_once_and_the_others_are_stopped():
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        list(workers.run([Job("long", time.sleep, (60,)), Job("bug", divmod, (1, 0))], 2))
    assert time.monotonic() - begun < 30
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_a_sentence():
    with pytest.raises(TrainingError, match=r"worker process died.*fewer --workers"):
        list(workers.run([Job("dies", die)], 1))


def test_jobs_that_need_each_other_are_told():
    with pytest.raises(ValueError, match="need each other"):
        list(workers.run([Job("a", fail, needs=frozenset("b")), Job("b", fail, needs=frozenset("a"))], 1))
