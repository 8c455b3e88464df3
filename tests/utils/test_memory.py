"""Memory is the machine's, or its container's where that is less: control groups of version 1 and 2."""

import os

import pytest

from staytrue.utils import memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NO_LIMIT_V1 = 2**63 - 4096


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"memory.max": 2_000}, 2_000),  # a container of Docker or Kubernetes on control groups v2
        ("0::/", {"memory.max": "max"}, None),
        ("0::/a/b", {"a/memory.max": 3_000, "a/b/memory.max": "max"}, 3_000),  # a limit of a group above, as Slurm's
        ("0::/a/b", {"memory.max": 9_000, "a/memory.max": 3_000, "a/b/memory.max": 5_000}, 3_000),
        ("4:memory:/docker/1f", {"memory/memory.limit_in_bytes": 2_000}, 2_000),  # v1: its own group is the root here
        ("4:cpu,memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": 2_000}, 2_000),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": NO_LIMIT_V1}, None),
        ("9:name=systemd:/a\n5:cpu:/a", {"memory/a/memory.limit_in_bytes": 2_000, "a/memory.max": 2_000}, None),
        (None, {}, None),  # no Linux
    ],
)
def test_the_least_limit_counts(tmp_path, monkeypatch, groups, files, limit):
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    if groups is not None:
        (tmp_path / "groups").write_text(groups + "\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    assert memory.machine_memory() == (limit or MACHINE)


def test_a_container_larger_than_the_machine_is_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "container_memory", lambda: MACHINE + 1)
    assert memory.machine_memory() == MACHINE
