"""Sphinx: the pages of this folder as a website, `make docs`. The pages read the same on a code host."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "diagrams"))
import render  # noqa: E402

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "staytrue"
copyright = "the staytrue authors"
version = release = _PROJECT["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # a notebook is made Markdown below
exclude_patterns = ["bench"]
html_theme = "furo"
html_title = f"staytrue {release}"
html_copy_source = False

myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "Config, model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "literal"


_DECISIONS = "\n```{toctree}\n:glob:\n:hidden:\n\n0*\n```\n"


def _for_the_site(app, docname, source):
    """Make links to files that the site does not hold plain text, and list the decisions in the side bar."""
    folder = Path(app.srcdir, docname).parent
    if os.fspath(app.env.doc2path(docname)).endswith(".ipynb"):
        source[0] = _page(json.loads(source[0])["cells"])
    source[0] = re.sub(
        r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)",
        lambda link: link[0] if _on_the_site(app, (folder / link[2]).resolve()) else link[1],
        source[0],
    )
    source[0] = render.BLOCK.sub(lambda block: _drawing(block[1], folder), source[0])
    if docname == "decisions/README":
        source[0] += _DECISIONS


def _page(cells):
    """A notebook as Markdown: its texts, its code and what the code printed."""
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            kind, code = ("bash", text.partition("\n")[2]) if text.startswith("%%bash") else ("python", text)
            text = f"```{kind}\n{code}\n```"
        parts += [text, *("```text\n" + "".join(output["text"]) + "```" for output in cell.get("outputs", []))]
    return "\n\n".join(parts)


def _drawing(text, folder):
    """The image of a diagram; without one the build fails and names the file that `make diagrams` writes."""
    return f"![Diagram: {text.splitlines()[0]}]({os.path.relpath(render.drawing(text), folder)})"


def _on_the_site(app, target):
    return target.is_file() and target.is_relative_to(Path(app.srcdir).resolve())


def setup(app):
    """Register the hook above."""
    app.connect("source-read", _for_the_site)
