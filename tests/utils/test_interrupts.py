"""Ctrl-C pressed once or often in a real command: one sentence, exit code 130, no traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

from interrupted import recipe_of, with_a_tiny_model
from staytrue.utils.files import read_rows

PROGRAM = """
import sys, threading, time, atexit
from staytrue import cli

def command():
    {body}

cli.app = command
print("ready", flush=True)
cli.main()
"""
BODIES = {
    "while it works": "time.sleep(60)",
    "while it records its end": """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)
        print("recorded", flush=True)
        raise
""",
    "while it exits": """
    atexit.register(lambda: (time.sleep(1), print("recorded", flush=True)))
    time.sleep(60)
""",
    "where Python ignores it": """
    class Part:
        def __del__(self):
            time.sleep(1)
    Part()
    time.sleep(60)
""",
    "where a library makes another error of it": """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        raise RuntimeError("a library's")
""",
    "where a string is executed": """
    exec("time.sleep(60)")
""",
}  # fmt: skip


def started(command):
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def pressed(process, times, pause):
    """Press Ctrl-C as a terminal does, for the whole group, and return what was printed when it ended."""
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(pause)
    return process.communicate(timeout=60)


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_command_ends_in_one_sentence_however_often_it_is_stopped(body, times):
    process = started([sys.executable, "-c", PROGRAM.format(body=body)])
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    out, errors = pressed(process, times, 0.1)
    assert (process.returncode, errors) == (130, "\nstaytrue: stopped.\n")
    assert out == ("recorded\n" if "recorded" in body else "")


def test_a_command_that_is_stopped_while_it_starts_ends_in_the_same_sentence(tmp_path):
    (tmp_path / "typer.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")  # a slow import
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from staytrue.__main__ import main; main()"
    process = started([sys.executable, "-c", code])
    assert process.stdout.readline() == "begun\n"
    _, errors = pressed(process, 1, 0.1)
    assert (process.returncode, errors) == (130, "\nstaytrue: stopped.\n")


@pytest.mark.parametrize("times", [1, 2])
def test_an_import_ends_before_the_command_does_unless_it_is_stopped_again(tmp_path, times):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(1.5)\nprint('imported', flush=True)\n")
    body = f"sys.path.insert(0, {str(tmp_path)!r}); import slow_module; time.sleep(60)"
    process = started([sys.executable, "-c", PROGRAM.format(body=body)])
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    out, errors = pressed(process, times, 0.1)
    assert process.returncode == 130
    assert (out, errors) == (
        ("imported\n", "\nstaytrue: stopped.\n") if times == 1 else ("", "\nstaytrue: stopped at once.\n")
    )


def test_a_finished_command_is_not_disturbed_in_its_exit():
    process = started([sys.executable, "-c", PROGRAM.format(body="atexit.register(time.sleep, 1)")])
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    assert pressed(process, 2, 0.1) == ("", "")
    assert process.returncode == 0


def test_a_command_that_ignores_ctrl_c_since_it_was_started_in_the_background_goes_on():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body="time.sleep(1)")], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("settings", [{"save_steps": 1}, {"dataloader_num_workers": 2, "save_steps": 50}])
def test_a_training_that_saves_or_has_loaders_is_stopped_five_times(tmp_path, settings):
    home = with_a_tiny_model(tmp_path)
    recipe = recipe_of(home, [{"kl": {"weight": 0.1}}], train={"max_steps": 4000, **settings})
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    run = tmp_path / "run"
    process = started([sys.executable, "-m", "staytrue.cli", "train", str(tmp_path / "recipe.yaml"), "--out", str(run)])
    deadline = time.monotonic() + 120
    while len(read_rows(run / "metrics.jsonl")) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _, errors = pressed(process, 5, 0.05)
    assert process.returncode == 130
    assert errors.count("staytrue: stopped; ") == 1
    assert errors.endswith(f"`staytrue train --resume {run}` goes on with it.\n")
    assert "Traceback" not in errors
    assert "Exception" not in errors
