"""What pyproject.toml declares is what `make test-lowest` installs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lowest_versions_are_those_that_are_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest_declared = dict(re.match(r"([a-z0-9_-]+)>=([0-9.]+)", line).groups() for line in declared)
    lines = (ROOT / "constraints" / "lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))

    def numbers(versions):
        return {name: [*map(int, version.split(".")), 0][:3] for name, version in versions.items()}

    assert numbers(lowest) == numbers(lowest_declared)
