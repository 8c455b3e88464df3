"""Commands that staytrue prints can be pasted: a path with blanks is quoted, whoever prints it."""

import ast
import doctest
import re
from pathlib import Path

from staytrue.commands import training
from staytrue.utils import console

SOURCE = Path(__file__).parents[1] / "src" / "staytrue"
NO_PATHS = {"NAME", "fetch.NAME", "extra", "launch", "seed", "context.invoked_subcommand"}


def inserted(path):
    """What the f-strings of a file put into a command of staytrue between backticks, as source text."""
    for node in ast.walk(ast.parse(path.read_text())):
        text = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                text += part.value
                continue
            begun = text.split("`")[-1] if text.count("`") % 2 else ""
            if re.match(r"(\S+ )*staytrue \w|--probes ", begun):
                yield ast.unparse(part.value)
            text += "x"


def test_a_path_in_a_printed_command_is_quoted():
    found = {text for path in SOURCE.rglob("*.py") for text in inserted(path)}
    assert len([text for text in found if text.startswith("quoted(")]) > 5
    assert {text for text in found if not text.startswith("quoted(")} <= NO_PATHS


def test_a_run_with_a_blank_in_its_name_can_be_resumed_by_the_line_that_is_printed():
    assert "`staytrue train --resume 'my runs/a b'`" in training._stopped(Path("my runs/a b"))
    assert doctest.testmod(console).failed == 0
