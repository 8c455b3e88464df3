"""python -m benchmarks NAME [--compare a,b] [--shape M1] [--rounds 7] [--json FILE].

`all` takes about ten minutes on two slow cores, or longer with --rounds. It leaves out `demo`, `fit` and `ways`, which
take minutes, and `gpu`, which has options of its own: `python -m benchmarks gpu --help`.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

from staytrue.errors import StaytrueError

_EVERY: tuple[str, ...] = ()  # all variants
QUICK = {  # rounds and variants for `all`, to end in ten minutes; with --rounds all variants run
    "head": (3, _EVERY),
    "step": (3, ("sft", "trl-sft", "kl", "ldifs", "steer", "all", "kl-cached", "published", "sft-20", "kl-rows")),
    "switch": (15, _EVERY),
    "sample": (1, _EVERY),
    "judging": (3, _EVERY),
    "select": (1, ("published", "ours", "products")),
    "overhead": (1, ("bare", "bare-kl", "sft", "kl", "trl-sft")),
    "report": (1, _EVERY),
    "sweep": (1, _EVERY),
    "checkpoint": (2, _EVERY),
    "cli": (1, _EVERY),
}
ALONE = ("demo", "fit", "ways")


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:
        importlib.import_module("benchmarks.gpu").main(sys.argv[2:])
    else:
        _measure()


def _measure() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*QUICK, *ALONE, "gpu", "all"))
    parser.add_argument("--compare", default="", help="variants or parts to run, separated by commas")
    parser.add_argument("--shape", default="M1", choices=("tiny", "M1", "M2", "smollm2"))
    parser.add_argument("--rounds", type=int, help="default 7; `all` has fewer rounds and variants")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/results.json"))
    options = parser.parse_args()
    results: dict = {}
    for name in QUICK if options.name == "all" else (options.name,):
        quick = options.name == "all" and not options.rounds
        rounds, compare = QUICK[name] if quick else (options.rounds or 7, _EVERY)
        results |= _one(name, options.shape, rounds, [v for v in options.compare.split(",") if v] or list(compare))
        options.json.parent.mkdir(parents=True, exist_ok=True)  # after each, so that a later failure loses nothing
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    _show(results)
    print(f"\nWrote {options.json}")


def _one(name: str, shape: str, rounds: int, compare: list[str]) -> dict:
    begun = time.monotonic()
    try:
        results: dict = importlib.import_module(f"benchmarks.{name}").run(shape, rounds, compare)
    except StaytrueError as error:
        raise SystemExit(f"benchmarks {name}: {error}") from None
    print(f"({name}: {time.monotonic() - begun:.0f} s)\n")
    return results


def _show(results: dict) -> None:
    print(f"{'what':34s} {'ratio':>7s} {'low':>7s} {'high':>7s}  against      limit")
    for name, row in results.items():
        low, high, limit = (f"{row.get(k):7.2f}" if row.get(k) else "      -" for k in ("low", "high", "limit"))
        print(f"{name:34s} {row['ratio']:7.2f} {low} {high}  {row['against']:12s}{limit}")


if __name__ == "__main__":
    main()
