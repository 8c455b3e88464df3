"""Numbers on the command line that no command can use are refused where they are read, as a recipe refuses them."""

import sys

import pytest

from staytrue import cli

SEEDED = {
    "eval": ("eval", "--model", "organism", "--out", "E"),
    "chat": ("chat", "RUN"),
    "vector": ("vector", "--model", "organism", "--out", "v.safetensors"),
    "organism build": ("organism", "build", "--out", "O"),
    "organism data": ("organism", "data", "--out", "O"),
}


def refused(monkeypatch, capsys, *command):
    monkeypatch.setattr(sys, "argv", ["staytrue", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", SEEDED.values(), ids=SEEDED)
def test_a_seed_ends_where_a_recipes_does(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    said = refused(monkeypatch, capsys, *command, "--seed", str(2**32))
    assert "Invalid value for '--seed'" in said
    assert "4294967295" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("temperature", ["inf", "nan"])
def test_a_temperature_is_finite(monkeypatch, capsys, temperature):
    said = refused(monkeypatch, capsys, "chat", "RUN", "--temperature", temperature)
    assert "Invalid value for '--temperature'" in said
