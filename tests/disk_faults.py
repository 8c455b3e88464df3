"""What the disk can do to a command at an exact moment. Each function prepares a child process, see `forked`."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path


def kill_in_commit(number):
    """SIGKILL before a call that changes the disk: the `number`-th within the commits of checkpoints."""
    from staytrue.runs.checkpoints import Checkpoints

    left, inside, commit = number, False, Checkpoints.commit

    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= inside
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    def committed(self, step, write):
        nonlocal inside
        inside = True
        try:
            return commit(self, step, write)
        finally:
            inside = False

    Checkpoints.commit = committed
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "open"), (os, "mkdir"), (os, "rmdir"),
                        (os, "unlink"), (shutil, "rmtree")):  # fmt: skip
        setattr(owner, name, counted(getattr(owner, name)))


def fill_at(number, disk):
    """Fill a small disk to its last byte before the `number`-th file on it is opened to be written.

    Files that torch and safetensors write without Python are counted too.
    """
    import safetensors.torch
    import torch

    left = number

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            fill(disk)

    def opened(event, arguments):
        if event == "open" and left > 0 and isinstance(arguments[0], str | os.PathLike):
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and str(disk) in str(arguments[0]):
                count()

    def counted(real):
        def save(value, file, *args, **kwargs):
            if str(disk) in str(file):
                count()
            return real(value, file, *args, **kwargs)

        return save

    sys.addaudithook(opened)
    torch.save, safetensors.torch.save_file = counted(torch.save), counted(safetensors.torch.save_file)
    import peft.utils.save_and_load  # noqa: F401

    for module in list(sys.modules.values()):  # those that imported the function by its name
        if getattr(module, "safe_save_file", None) is not None and module.__name__.startswith("peft"):
            module.safe_save_file = counted(module.safe_save_file)


def fill(disk):
    """Write a file until nothing is free."""
    handle = os.open(Path(disk) / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (65_536, 4096, 512, 1):
        with suppress(OSError):
            while True:
                os.write(handle, b"\0" * size)
    os.close(handle)
