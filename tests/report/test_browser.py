"""The page in a real browser, hostile words and long ones included."""

import re
import subprocess

import pytest

from fake_results import HOSTILE, Walk, answer_row, drawn, numbers, row, study
from staytrue.report.sentences import headline


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, tool, width):
    chromium = tool("chromium")
    rows = [*numbers(), *(row(text, None, 10, 60) | {"run": "runs/kl"} for text in HOSTILE)]
    answers = [answer_row(t, f"q{i}", prompt=t, topic=str(i), alignment=5, coherence=90) for i, t in enumerate(HOSTILE)]
    page = drawn(study(tmp_path / "demo", rows, answers, title=HOSTILE[3]))
    probe = (
        "<script>document.querySelectorAll('details').forEach(one => one.open = true);"
        "const root = document.documentElement;"
        "document.title = `${innerWidth} ${root.clientWidth} ${root.scrollWidth}`</script></body>"
    )
    (tmp_path / "copy.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'own'}"]
    command = [chromium, *quiet, f"--window-size={width},900", "--dump-dom", (tmp_path / "copy.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    inner, visible, needed = map(int, re.search("<title>(.+?)</title>", dom)[1].split())
    assert inner == width
    assert needed <= visible
    assert f"<h1>{headline(rows)}</h1>" in dom
    assert not {"img", "b"} & set(Walk(dom).tags)
