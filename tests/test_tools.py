"""A test that needs a tool which only some machines have says so, and never passes in silence where CI runs."""

import sys

import pytest


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with nothing on its PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_missing_tool_skips_with_the_way_to_get_it(tool, bare, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception) as skipped:
        tool("chromium")
    assert str(skipped.value) == "needs chromium: run `make test-tools`"


def test_where_ci_runs_a_missing_tool_is_a_failure(tool, bare, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needs chromium: run `make test-tools`"):
        tool("chromium")


def test_a_tool_that_is_there_is_found(tool, monkeypatch):
    python = sys.executable
    monkeypatch.setenv("PATH", python.rpartition("/")[0])
    assert tool(python.rpartition("/")[2]) == python
