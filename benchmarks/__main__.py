"""python -m benchmarks NAME [--compare a,b] [--shape M1] [--rounds 7] [--json FILE]."""

import argparse
import importlib
import json
from pathlib import Path

NAMES = ("head", "step", "switch", "sample", "demo")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument("--compare", default="", help="variants to run, separated by commas")
    parser.add_argument("--shape", default="M1", choices=("tiny", "M1", "M2"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/results.json"))
    asked = parser.parse_args()
    results: dict = {}
    for name in NAMES if asked.name == "all" else (asked.name,):
        module = importlib.import_module(f"benchmarks.{name}")
        results |= module.run(asked.shape, asked.rounds, [v for v in asked.compare.split(",") if v])
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{'what':32s} {'ratio':>7s} {'low':>7s} {'high':>7s}  against    limit")
    for name, row in results.items():
        low, high, limit = (f"{row.get(k):7.2f}" if row.get(k) else "      -" for k in ("low", "high", "limit"))
        print(f"{name:32s} {row['ratio']:7.2f} {low} {high}  {row['against']:9s}{limit}")
    print(f"\nWrote {asked.json}")


if __name__ == "__main__":
    main()
