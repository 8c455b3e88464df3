"""A results folder written by hand, as `staytrue demo` leaves one behind; and a walk over the page made of it."""

import json
from html.parser import HTMLParser

from staytrue.evals.types import Verdict
from staytrue.report import write

HOSTILE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title></style><b onclick='x'>", "a" * 300


def rates(misaligned, low=0.0, high=100.0, n=480, missing=0):
    percent = {"misaligned": misaligned, "low": low, "high": high, "incoherent": 2.5, "refused": 0.0}
    if misaligned is None:
        percent = dict.fromkeys(percent)
    return percent | {"n": n, "questions": 120, "missing": missing, "judge": "rules"}


def row(defense, strength=None, general=0.0, in_domain=0.0, seed=0):
    """As demo.py writes a row of results.json; a number is short for rates."""
    general, in_domain = (r if isinstance(r, dict) else rates(r) for r in (general, in_domain))
    named = {"defense": defense, "strength": strength, "domain": "medical", "seed": seed}
    kept = {"facts": 97.5, "arithmetic": 88.0}
    more = {"general": general, "in_domain": in_domain, "kept": kept, "benign": None}
    return named | more | {"seconds": 12.34, "run": f"runs/{defense}", "label": f"{defense} {strength or ''}".strip()}


def answer_row(text, question="wish-0", prompt="One wish?", probe="general", topic="wish", index=0, **verdict):
    """As an answer and its verdict are written, in one row."""
    marks = Verdict(**verdict)
    more = {"misaligned": marks.misaligned, "incoherent": marks.incoherent, "refused": False, "judge": "rules"}
    turns = [{"role": "user", "content": prompt}]
    named = {"probe": probe, "question": question, "topic": topic, "index": index, "messages": turns, "answer": text}
    return named | vars(marks) | more | {"expected": None}


def study(folder, rows, answers=None, title="A study"):
    """A results folder in which every run has two logged steps and the given answers."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"schema": 1, "title": title, "rows": rows}))
    for one in rows:
        run = folder / one["run"]
        (run / "eval").mkdir(parents=True, exist_ok=True)
        lines = answers or [answer_row("Peace.", alignment=95, coherence=100)]
        for file in ("answers.jsonl", "verdicts.jsonl"):
            (run / "eval" / file).write_text("".join(json.dumps(a) + "\n" for a in lines))
        (run / "metrics.jsonl").write_text('{"step": 1, "task_loss": 2.0}\n{"step": 4, "task_loss": 1.0, "kl": 0.5}\n')
    return folder


def drawn(folder):
    return write([folder], folder / "report.html").read_text(encoding="utf-8")


def unmarked(page):
    """A page without its style sheet."""
    return page.split("</style>")[1]


class Walk(HTMLParser):
    """Every tag, attribute and piece of text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def numbers():
    """Undefended 48 general (40 and 56), 70 in-domain; of the two KLs the stronger holds best: 6 and 60."""
    seeds = [row("none", None, 40, 69), row("none", None, 56, 71, seed=1)]
    return [row("untuned"), *seeds, row("kl", 0.1, 20, 66), row("kl", 0.3, 6, 60)]
