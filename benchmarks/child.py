"""Commands as a user gives them: each in a new process, timed from outside."""

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
    """A process from its start to its end; what it said on both streams together."""

    seconds: float
    said: str


def ran(command: Sequence[str], code: int = 0) -> Ended:
    """Run a command to its end, which must be with this exit code."""
    begun = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode != code:
        raise StaytrueError(f"{' '.join(command)} ended with {done.returncode}, not {code}:\n{done.stdout}")
    return Ended(seconds, done.stdout)


def until(command: Sequence[str], words: str) -> float:
    """Seconds until a command says a line that holds these words; then it is stopped."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            seconds = time.perf_counter() - begun
            said.append(line)
            if words in line:
                process.terminate()
                process.stdout.read()
                return seconds
    raise StaytrueError(f"{' '.join(command)} ended without a line with {words!r}:\n{''.join(said)}")
