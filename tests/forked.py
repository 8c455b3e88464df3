"""The real command in child processes that begin at once: forked from a process that has imported the heavy packages.

`Command("train", recipe, "--out", run)` is running when it is made; it can be waited for and killed.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time

from staytrue.utils.files import read_rows

_HEAVY = ["staytrue.cli", "staytrue.training.trainers", "staytrue.runs.train", "staytrue.training.evidence.recorder"]


def _run(arguments, output, prepare, prepared_with):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    from staytrue import cli

    sys.argv = ["staytrue", *arguments]
    if prepare is not None:
        prepare(*prepared_with)
    cli.main()


class Command:
    """A command that runs in a child process.

    Args:
        *arguments: of the command line.
        output: a file for what it prints.
        prepare: called in the child before the command, with `prepared_with`; a function that can be imported.
    """

    def __init__(self, *arguments, output=os.devnull, prepare=None, prepared_with=()):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_HEAVY)
        words = [str(argument) for argument in arguments]
        self._process = context.Process(target=_run, args=(words, str(output), prepare, prepared_with))
        self._process.start()

    def wait(self, seconds=None):
        """The exit code, or None if it still runs after so many seconds."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self):
        """End it by SIGKILL."""
        self._process.kill()
        self._process.join()


def kill_at_random(command, run, steps, dice):
    """Kill a command that trains at a random moment: while it begins, within or between its steps, or as it ends.

    Returns:
        Whether it was killed; it may have ended before.
    """
    if dice.random() < 0.2:
        command.wait(dice.uniform(0, 1))
    else:
        step, deadline = dice.randint(0, steps), time.monotonic() + 300
        while len(read_rows(run / "metrics.jsonl")) < step and command.wait(0.002) is None:
            assert time.monotonic() < deadline
        command.wait(dice.uniform(0, 0.1))
    if command.wait(0) is not None:
        return False
    command.kill()
    return True


def begun(run):
    """Whether a run can be resumed: it was killed after its recipe was written."""
    return (run / "recipe.yaml").exists()


def adapter_files(run):
    """The content of every file of the adapter of a finished run."""
    assert json.loads((run / "manifest.json").read_text())["state"] == "done"
    return {path.name: path.read_bytes() for path in (run / "model").iterdir() if path.name != "README.md"}


def seeded(*parts):
    return random.Random(" ".join(map(str, parts)))
