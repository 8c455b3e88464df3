"""The command line explains itself: whole summaries, a help text for every option, and the keys of `--json`."""

import re
from pathlib import Path

import pytest
import typer

from staytrue.cli import app

FORMATS = Path(__file__).parents[1] / "docs" / "formats.md"


def commands(group, name=""):
    """Every command and group of commands, by its name on the command line."""
    yield name, group
    for word, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {word}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("group", ["", "organism"])
def test_the_summary_of_every_command_is_whole_in_a_terminal_of_80_columns(group):
    command = COMMANDS[group]
    text = command.get_help(typer.Context(command, info_name="staytrue", terminal_width=80))
    lines = text.split("Commands:\n")[1].splitlines()
    assert len(lines) == len(command.commands)
    assert not [line for line in lines if not line.endswith(".") or line.endswith("...")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_a_help_text(name):
    assert not [parameter.name for parameter in COMMANDS[name].params if not parameter.help]


def test_the_keys_that_json_gives_are_documented_for_every_command_with_it():
    section = FORMATS.read_text(encoding="utf-8").split("## Output with `--json`")[1].split("\n## ")[0]
    table = section.split("| key of `rescore`")[0]
    listed = {name for row in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    have = {name for name, command in COMMANDS.items() if any("--json" in p.opts for p in command.params)}
    assert listed == have
