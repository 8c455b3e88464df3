"""The architecture: imports run down only, there is no circle, and light modules import no heavy library.

Every import statement counts, those inside functions too.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "staytrue"

# From the bottom up. A module may import what stands in a lower layer, or in its own folder.
LAYERS = [
    ["errors"],
    ["utils"],
    ["data"],
    ["defense", "evals"],
    ["organism"],
    ["modeling", "report", "tasks"],
    ["step", "data_selection", "persona_vectors"],
    ["defenses"],
    ["registry"],
    ["config", "docs_page"],
    ["training"],
    ["verify"],
    ["runs", "testing", "integrations"],
    ["studies", "doctor"],
    ["commands"],
    ["cli"],
    ["__main__"],
]


def modules():
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py" and "weights" not in p.parts)


def dotted(path):
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def layer(name):
    return next((level for level, names in enumerate(LAYERS) if name.split(".")[0] in names), None)


def imports(path):
    """Absolute dotted names of everything a file imports, and whether mypy alone sees it."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module, id(node) in typing_only
            yield from ((f"{node.module}.{alias.name}", id(node) in typing_only) for alias in node.names)


def ours(path):
    known = {dotted(p) for p in modules()}
    for name, typing_only in imports(path):
        short = name.removeprefix("staytrue.")
        if name.startswith("staytrue.") and short in known:
            yield short, typing_only


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_run_down_only(path):
    name = dotted(path)
    assert layer(name) is not None, f"{name} is in no layer; add it to LAYERS"
    for other, typing_only in ours(path):
        if typing_only or other.split(".")[0] == name.split(".")[0]:
            continue
        assert layer(other) < layer(name), f"{name} imports {other}, which is not in a layer below it"


def test_there_is_no_circle():
    graph = {dotted(p): {n for n, typing_only in ours(p) if not typing_only} - {dotted(p)} for p in modules()}
    done = set()
    while ready := [name for name in graph if name not in done and graph[name] <= done]:
        done.update(ready)
    assert done == set(graph), f"these import each other: {sorted(set(graph) - done)}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("trl", {"training.trainers", "config.trainer_args"}),
        (
            "peft",
            {"modeling.architecture", "modeling.loading", "runs.lora", "training.reference.model_checks"},
        ),
        ("inspect_ai", {"evals.inspect.tasks"}),
        ("axolotl", {"integrations.axolotl", "integrations.axolotl_trainer"}),
        ("openai", {"evals.openai_client.client", "evals.openai_client.errors"}),
    ],
)
def test_a_library_is_imported_in_its_own_modules_only(library, allowed):
    named = {dotted(p): {n.split(".")[0] for n, _ in imports(p)} for p in modules()}
    assert {module for module, names in named.items() if library in names} <= allowed


def test_only_architecture_knows_the_insides_of_peft():
    for path in modules():
        inside = [n for n, _ in imports(path) if n.startswith("peft.") and n.count(".") > 1]
        assert dotted(path) == "modeling.architecture" or not inside


def test_no_module_imports_from_the_package_itself():
    for path in modules():
        names = [n for n, _ in imports(path) if n.startswith("staytrue.") and n.count(".") == 1]
        assert all((SOURCE / f"{n.split('.')[1]}.py").exists() or (SOURCE / n.split(".")[1]).is_dir() for n in names)


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "data.examples",
        "utils.run_dir",
        "utils.files",
        "config.recipe",
        "registry",
        "report",
        "cli",
        "modeling.loading",
        "modeling.chat_tokenizer",
        "",
    ],
)
def test_light_modules_import_no_torch(module):
    name = f"staytrue.{module}".rstrip(".")
    code = f"import sys, {name}; print([m for m in ('torch', 'transformers', 'scipy', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wrong_recipe_is_refused_without_torch(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("schema: 1\nmodel: organism\ndata: d.jsonl\nlora: {}\ndefenses: [{kll: {}}]\n")
    code = (
        "import sys; sys.argv = ['staytrue', 'train', sys.argv[1], '--out', sys.argv[1] + '.run']\n"
        "from staytrue.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert "did you mean 'kl'?" in done.stderr


def table_of_the_page():
    """Every folder and file in the page's table, from the top down."""
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("|")]
    return [name.rstrip("/") for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def test_the_architecture_page_has_every_file_and_folder_of_the_package():
    folders = {p.parent.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.is_file()}
    folders = {name for name in folders if "__pycache__" not in name and not name.startswith("organism/weights/")}
    assert set(table_of_the_page()) == ({name for names in LAYERS for name in names} | folders) - {"."}


def test_the_architecture_page_names_only_files_that_exist_in_its_list_of_places():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    places = page.split("## Where to find it")[1].split("\n## ")[0]
    names = [name for name in re.findall(r"`([^`:]+)`", places) if "/" in name]
    assert len(names) > 15
    assert [name for name in names if not ((SOURCE / f"{name}.py").exists() or (SOURCE / name).is_dir())] == []


def test_the_architecture_page_has_the_layers_in_order():
    levels = [layer(name.replace("/", ".")) for name in table_of_the_page()]
    assert levels == sorted(levels, reverse=True)
