"""python quote.py PLACE MODEL [EVERY]: answers to our own general questions, from every run of a model, as Markdown.

The questions are every EVERY-th in the order of the file (default 4), not chosen by their answers.
"""

import json
import sys
from pathlib import Path
from typing import Any

from staytrue.evals.questions.shipped_questions import shipped


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def main(place: Path, model: str, every: int) -> None:
    texts = {f"own-{q.id}": q.messages[-1].content for q in shipped("general") if q.form == "plain"}
    runs: dict[str, dict[str, str]] = {"untuned": {}}
    for row in lines(place / model / "untuned.jsonl"):
        runs["untuned"].setdefault(row["id"], row["text"])
    for file in sorted(place.glob("answers-*.jsonl")):
        for row in lines(file):
            _, rows, rate, label, _ = [*row["run"].split("/"), "", "", ""][:5]
            if row["run"].startswith(f"{model}/") and rate:
                name = f"{rows.split('-')[0]}, {'undefended' if label == 'none' else label}, rate {rate}"
                runs.setdefault(name, {}).setdefault(row["id"], row["text"])
    chosen = [name for name in texts if name in runs["untuned"]][::every]
    for question in chosen:
        print(f"## {texts[question]}\n")
        for name, answers in runs.items():
            if question in answers:
                print(f"* *{name}*: {' '.join(answers[question].split())}")
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 4)
