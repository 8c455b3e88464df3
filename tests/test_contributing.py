"""CONTRIBUTING.md is true: its two examples, pasted as they stand, pass their tests and the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CONTRACT = "tests/test_every_defense.py"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A copy of the repository with the files that the page says to write, their defenses' names, and the files."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("src", "tests"):
        leave = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=leave)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"Write `([\w/.]+)`.*?```python\n(.*?)```", page, re.DOTALL)
    names = [Path(path).stem for path, _ in files[::2]]
    expected = [f for n in names for f in (f"src/staytrue/defenses/{n}.py", f"tests/defenses/test_{n}.py")]
    assert (names, [path for path, _ in files]) == (["freeze_norms", "ablate_plane"], expected)
    for path, text in files:
        assert not (folder / path).exists()
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder, names, expected


def run(folder, *arguments):
    """A module run in the copy, which is imported instead of the installed package."""
    paths = os.pathsep.join(str(folder / name) for name in ("src", "tests"))
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_both_examples_pass_their_own_tests_and_the_contract(newcomer):
    folder, names, files = newcomer
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\.venv/bin/python -m (pytest .*)$", page, re.MULTILINE)
    assert command == f"pytest {files[1]} {CONTRACT} --defense {names[0]}"
    # The second example's contract on one kind of model; of the pairs the two with each other, and one more.
    pairs = f"{'+'.join(sorted(names))} or {names[0]}+kl or all_defenses"
    some = f"not (gemma3 and {names[1]}) and (not take_one_step or {pairs})"
    output = run(folder, *command.split(), files[3], "--defense", names[1], "-k", some, "-v", "-p", "no:cacheprovider")
    passed = re.findall(r"^(\S+)::(\w+)(\S*) PASSED", output, re.MULTILINE)
    assert {files[1], files[3]} < {file for file, _, _ in passed}
    contract = [(test, case) for file, test, case in passed if file == CONTRACT]
    whole = re.findall(r"^def (test_\w+)", (REPOSITORY / CONTRACT).read_text(), re.MULTILINE)
    assert {test for test, _ in contract} == set(whole)
    assert [test for test, _ in contract].count("test_the_contract_holds") == 3  # two kinds of model, and one
    single = [case for test, case in contract if test != "test_all_defenses_take_one_step_together_with_all_weights"]
    assert all(case == "[chosen]" or any(name in case for name in names) for case in single)  # no other defense's
    assert not re.search(r"\d (failed|skipped|error|xfailed)", output)


def test_the_registry_and_the_command_line_have_it_at_once(newcomer):
    folder, names, _ = newcomer
    assert re.search(rf"^{names[0]}: ", run(folder, "staytrue.cli", "defenses"), re.MULTILINE)
    line = f"from staytrue import registry; print(registry.make('{names[0]}', {{'weight': 0.3}}))"
    (folder / "ask.py").write_text(line)
    assert "weight=0.3" in run(folder, "ask")


def test_the_files_pass_the_checks_of_form(newcomer):
    folder, _, files = newcomer
    run(folder, "ruff", "format", "--check", "--no-cache", *files)
    run(folder, "ruff", "check", "--no-cache", *files)
