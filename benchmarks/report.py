"""The report page of 500 runs, by a new process: wall time, peak memory, size.

Every run has 24 questions with 20 answers each and 340 logged steps.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.child import ran
from benchmarks.finished import finished
from benchmarks.sidebyside import alternate, share, to_goal

_RUNS, _STEPS, _QUESTIONS, _SAMPLES = 500, 340, 24, 20
_GOAL_S, _GOAL_MB, _GOAL_PEAK_MB = 3.0, 5.0, 500.0
# The command prints its own peak memory, because the system's figure for children includes the parent's memory.
_COMMAND = """
import atexit, sys
from pathlib import Path
own = Path("/proc/self/status")
atexit.register(lambda: print(own.read_text() if own.exists() else ""))
from staytrue.cli import main
main()
"""


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    runs, steps = (8, 20) if shape_name == "tiny" else (_RUNS, _STEPS)
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        done = finished(Path(place), runs, steps, _QUESTIONS, _SAMPLES)
        page = Path(place) / "page.html"

        def draw() -> float:
            ended = ran([sys.executable, "-c", _COMMAND, "report", str(done.folder), "--out", str(page)])
            peaks.append(_peak_mb(ended.output))
            return ended.seconds

        draw()  # warm up, so that the disk has written the files
        measured = alternate({"page": draw}, rounds)["page"]
        size = page.stat().st_size / 1e6
    print(f"report {runs} runs: {measured['seconds']:.2f} s, peak {max(peaks):.0f} MB, page {size:.2f} MB")
    return {
        f"report/{runs}/seconds": to_goal(measured, _GOAL_S),
        f"report/{runs}/size": share(size, _GOAL_MB, "MB"),
        f"report/{runs}/memory": share(max(peaks), _GOAL_PEAK_MB, "MB"),
    }


def _peak_mb(said: str) -> float:
    """Peak resident memory in MB; 0 on systems other than Linux."""
    lines = (line.split() for line in said.splitlines())
    return next((int(fields[1]) * 1024 / 1e6 for fields in lines if fields and fields[0] == "VmHWM:"), 0.0)
