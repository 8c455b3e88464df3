"""The wheel holds what the library needs, and works from a folder without the repository."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NEEDED = [
    "py.typed",
    "evals/prompts/alignment-1.txt",
    "evals/questions/general.jsonl",
    "evals/questions/medical.jsonl",
    "organism/lexicon.yaml",
    "organism/topics.yaml",
    "organism/weights/model.safetensors",
    "organism/weights/base/model.safetensors",
    "persona_vectors/traits/evil.yaml",
    "report/page.html.j2",
    "studies/demo.yaml",
]
STUDY = """
schema: 1
title: two steps
recipe:
  {model: organism, lora: {r: 2}, holdout: 0.05, train: {max_steps: 2, per_device_train_batch_size: 4, max_length: 64}}
variants:
  - {name: kl, strength: 0.1, recipe: {defenses: [{kl: {weight: 0.1}}]}}
  - {name: safelora, strength: 0.3, recipe: {defenses: [{safelora: {base: organism-base, threshold: 0.3}}]}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import os; from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return folder / done.stdout.split()[-1]


def test_the_wheel_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"staytrue/{name}" for name in NEEDED} <= names
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names
    assert not [name for name in names if not name.startswith(("staytrue/", "staytrue-"))]


def test_a_study_runs_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    work = tmp_path / "work"
    work.mkdir()
    (work / "study.yaml").write_text(STUDY)
    code = "import sys; from staytrue import cli; print(cli.__file__); sys.argv[1:] = {}; cli.main()"
    arguments = ["study", "study.yaml", "--out", "out", "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code.format(arguments)], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "kl 0.1" in (work / "out" / "report.html").read_text()


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in changes[:2]


def test_the_workflow_runs_ci_on_the_declared_pythons_and_systems():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [text.rpartition(" ")[2] for text in declared if re.search(r"3\.\d+$", text)]
    assert job["strategy"]["matrix"] == {"os": ["ubuntu-latest", "macos-latest"], "python": pythons}
    assert job["steps"][-1]["run"] == ".ci/run"


def test_every_yaml_file_of_the_repository_can_be_read():
    files = [ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
    assert len(files) == 5
    for file in files:
        assert yaml.safe_load(file.read_text()), file
