"""Commands in new processes, timed from outside."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from staytrue.errors import StaytrueError

_SCRIPT = Path(sys.executable).with_name("staytrue")
STAYTRUE = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "staytrue.cli"]


@dataclass(frozen=True)
class Ended:
    """A finished process: its seconds, and its output on both streams."""

    seconds: float
    output: str


def ran(command: Sequence[str], code: int = 0) -> Ended:
    """Run a command and check its exit code."""
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode != code:
        raise StaytrueError(f"{' '.join(command)} ended with {done.returncode}, not {code}:\n{done.stdout}")
    return Ended(seconds, done.stdout)


def until(command: Sequence[str], text: str) -> float:
    """Seconds until a command prints a line with these words; then stop it."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            seconds = time.perf_counter() - begun
            lines.append(line)
            if text in line:
                process.terminate()
                process.stdout.read()
                return seconds
    raise StaytrueError(f"{' '.join(command)} ended without a line with {text!r}:\n{''.join(lines)}")
