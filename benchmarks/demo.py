"""Wall time of the whole demo, in a new process."""

import subprocess
import sys
import tempfile
import time

TARGET_S = 120  # on two cores, after installation


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "staytrue.cli", "demo", "--out", f"{folder}/demo"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
    print(f"demo: {seconds:.1f} s (target {TARGET_S} s)")
    return {"demo": {"ratio": round(seconds / TARGET_S, 3), "against": f"{TARGET_S} s", "limit": None}}
