"""The documentation: every tutorial runs as it stands, and the website loads nothing from a network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]


def run(words, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tmp_path):
    """YAML blocks are written to the file they name, console lines and Python blocks run in order."""
    blocks = re.findall(
        r"^```(yaml|console|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert blocks
    script = ""
    for kind, text in blocks:
        if kind == "yaml":
            (tmp_path / text.splitlines()[0].removeprefix("# file: ")).write_text(text, encoding="utf-8")
        elif kind == "python":
            script += text
        else:
            for line in text.splitlines():
                command = line.removeprefix("$ staytrue ").split()
                assert line.startswith("$ staytrue "), line
                run(["-m", "staytrue.cli", *command], tmp_path)
    if script:
        (tmp_path / "script.py").write_text(f'if __name__ == "__main__":\n{_indented(script)}', encoding="utf-8")
        run(["script.py"], tmp_path)


def _indented(script):
    return "".join(f"    {line}" if line.strip() else line for line in script.splitlines(keepends=True))


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
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert assets.loaded
        assert not [asset for asset in assets.loaded if re.match(r"(https?:)?//", asset)], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style
