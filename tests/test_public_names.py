"""What `staytrue` exports is deliberate: these names, lazily, and every defense by its class's name."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import staytrue
from staytrue import registry

NAMES = {
    "Defense", "EvalRequest", "Example", "Guard", "GuardedGRPO", "GuardedSFT", "StaytrueError", "Judge", "Message",
    "PersonaVector", "Probe", "Question", "Recipe", "Step", "Verdict", "contract", "evaluate", "train",
}  # fmt: skip


def test_the_public_names_are_these_and_each_is_there():
    defenses = {registry.find(name).__name__ for name in registry.names()}
    assert set(dir(staytrue)) == NAMES | defenses
    assert all(callable(getattr(staytrue, name)) for name in dir(staytrue))


def test_an_unknown_name_is_an_attribute_error():
    for name in ("Kl", "nothing", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(staytrue, name)


def test_importing_staytrue_and_naming_a_defense_imports_no_torch():
    code = "import sys, staytrue; staytrue.KL(weight=0.3); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_editors_and_type_checkers_see_every_public_name():
    tree = ast.parse(Path(staytrue.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: getattr(import_module(node.module), alias.name) for node in block.body for alias in node.names
    }
    assert seen == {name: getattr(staytrue, name) for name in dir(staytrue)}
