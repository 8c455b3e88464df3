"""Warnings of staytrue are of one kind, which the command line prints as sentences and a script can filter."""

import ast
import errno
import warnings
from pathlib import Path

import pytest

import staytrue
from staytrue import cli
from staytrue.errors import StaytrueWarning


def test_every_warning_of_the_package_is_of_its_own_kind():
    calls = [
        (file.name, node)
        for file in Path(staytrue.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert calls
    assert [name for name, call in calls if "StaytrueWarning" not in map(ast.unparse, call.args)] == []
    assert issubclass(StaytrueWarning, UserWarning)


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.ENOSPC, "Free some space, and give the command again."), (errno.EIO, "Check the")]
)
def test_the_command_line_says_what_to_do_about_a_full_disk_and_other_faults(monkeypatch, capsys, number, way_out):
    def app():
        raise OSError(number, "a fault", "a file")

    monkeypatch.setattr(cli, "app", app)
    assert cli._ended() == 1
    assert capsys.readouterr().err.startswith(f"staytrue: The operating system reports: a fault (a file). {way_out}")


def test_the_command_line_prints_a_warning_without_its_file_and_line(monkeypatch, capsys):
    def ended():
        warnings.warn("kl was 0. Take it out.", StaytrueWarning, stacklevel=2)
        warnings.warn("of another package", UserWarning, stacklevel=2)
        return 0

    monkeypatch.setattr(cli, "_ended", ended)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            cli.main()
    assert capsys.readouterr().err == "staytrue: warning: kl was 0. Take it out.\n"
    assert [str(one.message) for one in others] == ["of another package"]
