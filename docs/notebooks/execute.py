"""Executes the notebooks of this folder: `make notebooks` stores what they print, and a test runs them again."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
_STYLE = re.compile(r"\x1b\[[0-9;]*m")  # bold and colour in a terminal


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder, and return it with what its cells print to standard output, and nothing else.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    content = nbformat.read(notebook, as_version=4)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for `staytrue`
    NotebookClient(content, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in content.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            text = _STYLE.sub("", "".join(output.text for output in cell.outputs if output.get("name") == "stdout"))
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    return content


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(executed(path, Path(scratch)), path)
