"""The documentation: every tutorial and notebook runs as it stands; the website loads nothing from a network."""

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs  # `make docs` runs them

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]


def run(arguments, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


COMMAND = """\
import sys


def command(*words):
    from staytrue import cli

    sys.argv[1:] = words
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, words


if __name__ == "__main__":
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tmp_path):
    """YAML blocks are written to the file they name; console lines and Python blocks run in order, in one process."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(yaml|console|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert any(kind == "python" for kind, _ in blocks)
    script = COMMAND
    for kind, block in blocks:
        if kind == "yaml":
            (tmp_path / block.splitlines()[0].removeprefix("# file: ")).write_text(block, encoding="utf-8")
        elif kind == "python":
            script += textwrap.indent(block, "    ")
        else:
            for line in block.splitlines():
                start, *arguments = shlex.split(line)[1:]
                assert (line[0], start) == ("$", "staytrue"), line
                script += f"    command(*{arguments})\n"
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    run(["page.py"], tmp_path)


def labels(text):
    """The first word of each line; what a model wrote may differ from machine to machine."""
    return [line.split()[:1] for line in "".join(text).splitlines()]


_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w.])")


def same_numbers(shown, printed):
    """Whether two outputs have the same counts, and nearly the same measured values.

    Whole numbers are counts of rows, steps or questions, and settings; they are the same on every machine. Fractions,
    and ends of intervals in brackets, are measured: another processor rounds sums in another order, and a sampled
    answer may then differ. A loss may differ by 0.1, and a percentage by 12 points.
    """
    pairs = zip(_numbers(shown), _numbers(printed), strict=False)
    if len(_numbers(shown)) != len(_numbers(printed)):
        return False
    return all(a == b or (loose and other and abs(a - b) <= (0.1 if max(abs(a), abs(b)) < 1 else 12))
               for (a, loose), (b, other) in pairs)  # fmt: skip


def _numbers(text):
    """The numbers of a text, each with whether it is measured."""
    found = []
    for line in text.splitlines():
        for match in _NUMBER.finditer(line):
            before = line[: match.start()]
            bracketed = before.count("(") > before.count(")")
            found.append((float(match[0].replace(",", "")), bracketed or "." in match[0]))
    return found


def test_numbers_of_notebooks_are_compared():
    line = "kl 22.1 (18 to 26)  -48.3  0.0001  120 x 1; 1,266 rows; loss 0.44; adapter d6e9f9222bef, 95 of 100"
    assert [number for number, measured in _numbers(line) if not measured] == [120, 1, 1266, 95, 100]
    assert same_numbers(line, line.replace("22.1", "30.0").replace("18 to", "25 to").replace("0.44", "0.50"))
    for changed in (("120 x", "121 x"), ("1,266", "1,267"), ("22.1", "40.0"), ("0.44", "0.60"), ("-48.3", "48.3"),
                    ("; loss 0.44", "; loss")):  # fmt: skip
        assert not same_numbers(line, line.replace(*changed)), changed


@pytest.mark.parametrize("notebook", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_the_lines_that_it_shows(notebook, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "notebooks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from execute import executed

    shown = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for before, cell in zip(shown, executed(notebook, tmp_path).cells, strict=True):
        if cell.cell_type == "code":
            printed = [labels(output["text"]) for output in cell.outputs]
            assert printed == [labels(output["text"]) for output in before["outputs"]], cell.source
            texts = [
                "".join("".join(output["text"]) for output in outputs) for outputs in (before["outputs"], cell.outputs)
            ]
            assert same_numbers(*texts), texts


class Assets(HTMLParser):
    """What a browser would load for a page: everything but links that a reader must click."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and value]


def test_the_website_builds_without_a_warning_and_loads_nothing_from_a_network(tmp_path):
    run(["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "site")], ROOT)
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    page = (tmp_path / "site" / "notebooks" / "provider.html").read_text(encoding="utf-8")
    assert "is held back" in re.sub("<[^>]*>", "", page)  # what a cell printed
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.loaded
        assert not [asset for asset in assets.loaded if re.match(r"(https?:)?//", asset)], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style
