"""CONTRIBUTING.md is true: its two files, pasted as they stand, are a defense that passes its test and the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """A copy of the repository with the two files that the page tells a newcomer to write, and nothing else changed."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("src", "tests"):
        leave = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=leave)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source, code), (test, check) = re.findall(r"Write `([\w/.]+)`.*?```python\n(.*?)```", page, re.DOTALL)
    name = Path(source).stem
    assert (source, test) == (f"src/staytrue/defenses/{name}.py", f"tests/defenses/test_{name}.py")
    for path, text in ((source, code), (test, check)):
        assert not (folder / path).exists()
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder, name, [source, test]


def run(folder, *words):
    """A module run in the copy, which is imported instead of the installed package."""
    paths = os.pathsep.join(str(folder / name) for name in ("src", "tests"))
    given = [sys.executable, "-m", *words]
    done = subprocess.run(given, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_two_files_pass_their_own_test_and_the_contract(newcomer):
    folder, name, (_, own) = newcomer
    told = run(folder, "pytest", "-v", "-p", "no:cacheprovider", own, "tests/test_every_defense.py", "-k", name)
    passed = re.findall(r"^(\S+)::(\w+)\S* PASSED", told, re.MULTILINE)
    assert own in {file for file, _ in passed}
    contract = [test for file, test in passed if file == "tests/test_every_defense.py"]
    whole = (REPOSITORY / "tests" / "test_every_defense.py").read_text()
    assert set(contract) == set(re.findall(r"^def (test_\w+)", whole, re.MULTILINE))
    assert contract.count("test_the_contract_holds") == 2  # two kinds of model
    assert not re.search(r"\d (failed|skipped|error|xfailed)", told)


def test_the_registry_and_the_command_line_know_it_at_once(newcomer):
    folder, name, _ = newcomer
    assert re.search(rf"^{name}: ", run(folder, "staytrue.cli", "defenses"), re.MULTILINE)
    (folder / "ask.py").write_text(f"from staytrue import registry; print(registry.make('{name}', {{'weight': 0.3}}))")
    assert "weight=0.3" in run(folder, "ask")


def test_the_two_files_pass_the_checks_of_form(newcomer):
    folder, _, files = newcomer
    run(folder, "ruff", "format", "--check", "--no-cache", *files)
    run(folder, "ruff", "check", "--no-cache", *files)
