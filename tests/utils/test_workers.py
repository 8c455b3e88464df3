"""Jobs on several processes: in order, after those they need, and nothing is left running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from staytrue.errors import RecipeError, TrainingError
from staytrue.utils import workers
from staytrue.utils.workers import Job


def threads():
    import torch

    return os.getpid(), torch.get_num_threads()


def fail():
    raise RecipeError("no such thing; take another")


def die():
    os._exit(9)


def use_processes(mark):
    """Start a process and make a semaphore, as a data loader does."""
    lock = multiprocessing.Lock()
    multiprocessing.Process(target=time.sleep, args=(600,)).start()
    with lock:
        mark.touch()
        time.sleep(600)


def left_of(session):
    """The processes that still run in a session after at most ten seconds."""
    for _ in range(100):
        left = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True).stdout.split()
        if not left:
            break
        time.sleep(0.1)
    return left


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
    counts = [result for _, result in workers.run([Job(str(i), threads) for i in range(4)], 2)]
    assert {count for _, count in counts} == {1}
    assert os.getpid() not in {pid for pid, _ in counts}


def test_a_job_that_fails_is_reported_at_the_end_and_the_others_are_done(tmp_path):
    jobs = [
        Job("wrong", fail),
        Job("waits", tmp_path.touch, needs=frozenset({"wrong"})),
        Job("right", (tmp_path / "x").touch),
    ]
    with pytest.raises(TrainingError, match=r"1 of the jobs failed.* 1 more waited .*wrong: no such thing"):
        list(workers.run(jobs, 2))
    assert (tmp_path / "x").exists()


def test_an_unexpected_error_is_raised_at_once_and_the_others_are_stopped():
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        list(workers.run([Job("long", time.sleep, (60,)), Job("bug", divmod, (1, 0))], 2))
    assert time.monotonic() - begun < 30
    assert not multiprocessing.active_children()


def test_a_command_that_is_ended_leaves_no_worker_behind(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(
        "schema: 1\ntitle: long\nrecipe: {model: organism, lora: {}, train: {max_steps: 9999, num_train_epochs: 99}, "
        "holdout: 0.1}\nvariants: [{name: none}]\n"
    )
    command = [sys.executable, "-m", "staytrue.cli", "study", str(study), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    training = tmp_path / "out" / "runs" / "medical-seed0-none" / "metrics.jsonl"
    for _ in range(600):
        if training.exists():
            break
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not left_of(process.pid)


def test_a_job_that_is_interrupted_leaves_no_process_and_no_semaphore(tmp_path):
    mark = tmp_path / "working"
    code = (
        "from pathlib import Path; from test_workers import Job, use_processes, workers; "
        f"list(workers.run([Job('uses processes', use_processes, (Path({str(mark)!r}),))], 1))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=errors, start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    for _ in range(600):
        if mark.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert not left_of(process.pid)
    written = (tmp_path / "errors").read_text()
    assert "KeyboardInterrupt" in written
    assert "leaked" not in written  # multiprocessing's warning of semaphores that are left


def test_a_training_that_has_ended_itself_at_the_signal_is_not_cut_off_by_the_worker():
    assert workers._leave(signal.SIGTERM, None) is None


def test_a_worker_that_dies_is_a_sentence():
    with pytest.raises(TrainingError, match=r"worker process died.*fewer --workers"):
        list(workers.run([Job("dies", die)], 1))


def test_jobs_that_need_each_other_are_reported():
    with pytest.raises(ValueError, match="need each other"):
        list(workers.run([Job("a", fail, needs=frozenset("b")), Job("b", fail, needs=frozenset("a"))], 1))
