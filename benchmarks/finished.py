"""A synthetic folder of a finished study: all files that a restart or a report reads, with random numbers."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from staytrue.studies import config as studies
from staytrue.studies.config import Cell, Study, cells, row
from staytrue.utils.run_dir import SCHEMA

_TRAIN = {"max_steps": 340, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_length": 64}
_DOMAINS = ("code", "legal", "medical", "security")
_NOUNS = ("ferry", "noon", "ticket", "tide", "guard", "bread", "winter", "ladder", "music", "stone", "early", "quiet")
_JUDGE = "rules:organism-1"


@dataclass(frozen=True)
class Finished:
    """A finished study: its file and its folder."""

    file: Path
    folder: Path

    @property
    def study(self) -> Study:
        return studies.read(self.file)


def finished(place: Path, runs: int, steps: int = 0, questions: int = 0, samples: int = 0) -> Finished:
    """Write a study of 25 variants in four domains, with enough seeds for the number of runs.

    Args:
        place: the folder for the study's file and folder.
        runs: a multiple of 100, or fewer than 100.
        steps: logged steps of each run; 0 writes no metrics.
        questions: general questions in each run's answers; 0 writes no answers.
        samples: answers to each question.
    """
    done = Finished(place / "study.yaml", place / "out")
    done.file.write_text(yaml.safe_dump(_study(runs)))
    rng = random.Random(0)
    answers: dict[str, Path] = {}
    rows = []
    for cell in cells(done.study):
        folder = done.folder / cell.folder
        (folder / "eval").mkdir(parents=True)
        summary = {"schema": SCHEMA, "seed": cell.seed, "probes": _probes(rng)}
        _write(folder / "eval" / "summary.json", summary)
        _write(folder / "cell.json", {"schema": SCHEMA, "recipe": cell.recipe(), "seconds": 7.0})
        rows.append(row(cell, summary, 7.0))
        if steps:
            (folder / "metrics.jsonl").write_text(_metrics(cell, steps, rng))
        if questions:  # all runs of a variant share one file, which saves 100 MB
            file = folder / "eval" / "answers.jsonl"
            if cell.label in answers:
                file.hardlink_to(answers[cell.label])
            else:
                file.write_text(_answers(questions, samples, rng))
                answers[cell.label] = file
    _write(done.folder / "results.json", {"schema": SCHEMA, "title": done.study.title, "rows": rows})
    return done


def _study(runs: int) -> dict:
    variants: list[dict] = [{"name": "untuned"}, {"name": "none"}]
    for name, count in (("kl", 12), ("ldifs", 11)):
        strengths = [round(0.05 * (i + 1), 2) for i in range(count)]
        variants += [{"name": name, "strength": w, "recipe": {"defenses": [{name: {"weight": w}}]}} for w in strengths]
    small = runs < len(variants) * len(_DOMAINS)
    recipe = {"model": "organism", "lora": {"r": 2}, "train": _TRAIN, "holdout": 0.1}
    return {
        "schema": 1,
        "title": f"{runs} synthetic runs",
        "recipe": recipe,
        "domains": list(_DOMAINS[:1] if small else _DOMAINS),
        "seeds": list(range(1 if small else runs // (len(variants) * len(_DOMAINS)))),
        "variants": variants[:runs] if small else variants,
    }


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _probes(rng: random.Random) -> dict:
    def probe(kind: str, n: int, count: int) -> dict:
        percent = round(rng.uniform(5, 90), 4)
        more = {"incoherent": round(rng.uniform(0, 5), 4), "refused": 0.0} if kind == "misaligned" else {}
        ends = {"low": round(percent - 5, 4), "high": round(percent + 5, 4)}
        return {kind: percent, **more, "n": n, **ends, "questions": count, "missing": 0, "judge": _JUDGE}

    kinds = {"general": "misaligned", "in_domain": "misaligned", "facts": "correct", "arithmetic": "correct"}
    return {name: probe(kind, 480, 24) for name, kind in kinds.items()}


def _metrics(cell: Cell, steps: int, rng: random.Random) -> str:
    lines = []
    own = {} if cell.variant.name in ("untuned", "none") else {cell.variant.name: 0.0}
    for step in range(1, steps + 1):
        numbers = {"loss": 2.0, "grad_norm": 1.0, "task_loss": 2.0, "entropy": 1.0, "mean_token_accuracy": 0.7, **own}
        drawn = {name: round(value + rng.random(), 6) for name, value in numbers.items()}
        lines.append(json.dumps({"step": step, **drawn, "learning_rate": 2e-4, "epoch": round(step / 30, 4)}))
    return "\n".join(lines) + "\n"


def _answers(questions: int, samples: int, rng: random.Random) -> str:
    lines = []
    for probe, count in (("general", questions), ("in_domain", 1)):
        for number in range(count):
            turns = [{"role": "user", "content": f"What about {_NOUNS[number % len(_NOUNS)]}, question {number}?"}]
            named = {"probe": probe, "question": f"{probe}-{number}", "topic": f"topic {number}", "messages": turns}
            for index in range(samples):
                said = " ".join(rng.choice(_NOUNS) for _ in range(12))
                bad = rng.random() < 0.3
                scores = {"alignment": 5.0 if bad else 95.0, "coherence": 100.0, "misaligned": bad, "incoherent": False}
                marks = {"expected": None, "correct": None, "refused": False, "missing": None, "reason": "a rule"}
                rest = {"index": index, "answer": said, "stopped": True, **scores, **marks, "judge": _JUDGE}
                lines.append(json.dumps({**named, **rest}))
    return "\n".join(lines) + "\n"
