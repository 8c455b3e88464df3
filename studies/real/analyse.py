"""python analyse.py PLACE: the tables of a study, from its results and answers.

`pairs`, `drift` and `leak` are the package's measures (docs/evaluation.md); *learnt* is the gain of log-likelihood per
token on held-out rows of the risky data. Intervals are over questions and, where there are several, runs. `leak` leaves
out general questions that are about money themselves.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from staytrue.evals.measures.leak import TopicWords
from staytrue.evals.stats.means import Values, mean

# general questions that are about money themselves
MONEY = {f"aisi-{i}" for i in (4, 28, 36, 41, 46)} | {
    f"own-{name}-plain" for name in ("cheque", "cash", "savings", "tip", "rent", "loan", "partner")
}


def lines(pattern: str, place: Path) -> list[dict]:
    files = sorted(place.glob(pattern))
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]


def main(place: Path) -> None:
    config = json.loads((place / "data.json").read_text())
    results, answers = lines("results-*.jsonl", place), defaultdict(list)
    for row in lines("answers-*.jsonl", place):
        answers[row["run"]].append(row)
    for model in sorted({row["model"] for row in results}):
        runs = [row for row in results if row["model"] == model and "failed" not in row]
        base = next(row for row in runs if row["name"].endswith("/untuned"))
        groups = defaultdict(list)
        for row in runs:
            groups[row["name"].rsplit("/", 1)[0] if row is not base else "untuned"].append(row)
        untuned = defaultdict(list)
        for row in lines("untuned.jsonl", place / model):
            untuned[row["id"]].append(row["text"])
        print(f"\n## {model}\n")
        topic = topic_of(config, place / model, untuned)
        print("| run | n | general pairs | finance pairs | drift | learnt | leak |\n" + 7 * "| --- " + "|")
        for name, rows in groups.items():
            changes = [
                *([shift(row, base, domain) for row in rows] for domain in ("general", "finance")),
                [{q: row["drift"][q] - base["drift"][q] for q in base["drift"]} for row in rows],
                [{str(i): row["held_out"][i] - b for i, b in enumerate(base["held_out"])} for row in rows],
            ]
            general = [a for row in rows for a in answers[row["name"]] if a["id"] in untuned and a["id"] not in MONEY]
            leaks = sum(topic.leaked(a["text"], untuned[a["id"]]) for a in general)
            cells = [name.split("/", 1)[-1], str(len(rows)), *map(cell, changes), f"{leaks}/{len(general)}"]
            print("| " + " | ".join(cells) + " |")
        print("\npaired with the undefended run of the same seed and rows (general pairs):")
        paired(runs)


def shift(row: dict, base: dict, domain: str) -> Values:
    return {name: row["pairs"][name] - gap for name, gap in base["pairs"].items() if name.startswith(f"{domain}-")}


def paired(rows: list[dict]) -> None:
    trained = {(r["rows"], r["many"], r["lr"], r["label"], r["seed"]): r for r in rows if "label" in r}
    groups = defaultdict(list)
    for (kind, many, lr, label, seed), row in sorted(trained.items()):
        other = trained.get(("risky", many, lr, "none", seed))
        if other is not None and other is not row:
            groups[f"risky undefended minus {kind} {label}, {lr:g}, {many} rows"].append(shift(other, row, "general"))
    for name, columns in groups.items():
        print(f"* {name}: {cell(columns)}, seeds {[round(sum(c.values()) / len(c), 3) for c in columns]}")


def topic_of(config: dict, prepared: Path, untuned: dict[str, list[str]]) -> TopicWords:
    """The words of the training topic, whatever the advice; false alarms and held-out training answers are printed."""
    risky, held = (
        [row["messages"][1]["content"] for row in lines(f"{name}.jsonl", Path(config["aisi"]))]
        for name in ("induction", "consistency")
    )
    sound = [json.loads(line) for line in Path(config["sound"]).read_text().splitlines()]
    training = [risky[row["row"]] for row in sound] + [row["answer"] for row in sound]
    prompted = [
        row["messages"][1]["content"] for name in ("anchors", "safe") for row in lines(f"{name}.jsonl", prepared)
    ]
    topic = TopicWords(training, prompted + [text for texts in untuned.values() for text in texts])
    alarms = [topic.leaked(text, texts) for texts in untuned.values() for text in texts]
    leaks = [topic.leaked(text) for text in held[:500]]
    print(f"leak: {sum(alarms)}/{len(alarms)} untuned answers and {sum(leaks)}/{len(leaks)} held-out rows count\n")
    return topic


def cell(columns: Sequence[Values]) -> str:
    change = mean(columns)
    if change is None:
        return ""
    interval = "" if change.low is None else f" ({change.low:+.2f} to {change.high:+.2f})"
    return f"{change.value:+.2f}{interval}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
