"""Draw the mermaid diagrams of the pages as SVG for the website: `make diagrams`, after a diagram was edited.

A code host draws mermaid by itself. The website must not load a script, so each diagram's drawing is kept beside this
file under the hash of its text. Needs npm and Chromium.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONS = (
    '{startOnLoad: true, theme: "neutral", htmlLabels: false, sequence: {width: 105, actorMargin: 40, wrap: true}}'
)
PAGE = """<!doctype html><meta charset="utf-8"><pre class="mermaid">{text}</pre>
<script src="package/dist/mermaid.min.js"></script><script>mermaid.initialize({options})</script>"""


def drawing(text):
    """The file that holds the drawing of a diagram."""
    return HERE / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"


def main(package):
    """Draw what is missing, with mermaid as npm packs it, and delete what no page has any more."""
    texts = [text for page in sorted(HERE.parent.glob("**/*.md")) for text in BLOCK.findall(page.read_text("utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.tgz")
        subprocess.run(["tar", "xzf", archive], cwd=folder, check=True)
        for text in texts:
            page = Path(folder, "page.html")
            page.write_text(PAGE.format(text=text, options=OPTIONS), "utf-8")
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
            dom = subprocess.run(["chromium", *options, page.as_uri()], check=True, capture_output=True, text=True)
            svg = re.search(r"<svg.*?</svg>", dom.stdout, re.DOTALL)[0].replace("<br>", "<br/>")
            if "Syntax error in text" in svg:
                sys.exit(f"mermaid cannot read this diagram (a semicolon ends a statement):\n{text}")
            drawing(text).write_text(svg + "\n", "utf-8")
    for old in set(HERE.glob("*.svg")) - {drawing(text) for text in texts}:
        old.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
