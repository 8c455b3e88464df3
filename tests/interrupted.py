"""Runs of a tiny model that are interrupted: their files, recipe, what stops them, and their log without times."""

import dataclasses
import json

import tiny
from staytrue.config import recipe as recipes
from staytrue.data.examples import Message, write_examples
from staytrue.utils.files import read_rows
from test_every_defense import without_sampling

TIMES = ("step_time", "seconds")  # of a clock


def with_a_tiny_model(folder):
    """The folder, with a tiny model, rows, a pool of rows, and problems to be rewarded."""
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    write_examples(folder / "rows.jsonl", tiny.rows(24))
    write_examples(folder / "pool.jsonl", tiny.rows(9))
    problems = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(6)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return folder


def recipe_of(home, defenses=(), **changes):
    settings = {"max_steps": 8, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 2,
                "learning_rate": 1e-2, "warmup_steps": 0}  # fmt: skip
    plain = {"schema": 1, "model": str(home / "model"), "data": "rows.jsonl", "lora": {"r": 4, "alpha": 8}, "seed": 3}
    plain |= {"train": settings | changes.pop("train", {}), **changes}
    if all(isinstance(defense, dict) for defense in defenses):
        return recipes.parse({**plain, "defenses": list(defenses)}, home)
    return recipes.parse(plain, home).model_copy(update={"defenses": list(defenses)})


class Stopping:
    """Progress that ends the process's training at a step, as Ctrl-C would."""

    def __init__(self, at):
        self.at, self.unit = at, "step"

    def begin(self, total, unit="step", done=0):
        self.unit = unit

    def step(self, step, numbers):
        if (step, self.unit) == (self.at, "step"):
            raise KeyboardInterrupt


def damaged(content, dice):
    """A file's bytes with a flipped bit or, one time in five, cut; and the place."""
    place = dice.randrange(len(content))
    if dice.random() < 0.2:
        return content[:place], place
    return content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :], place


def logged(run):
    """The rows of the log, without times."""
    rows = read_rows(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


def other_rows(n):
    """Rows that the training data do not hold."""
    return [
        dataclasses.replace(row, messages=(Message("user", f"other {i}?"), *row.messages[1:]))
        for i, row in enumerate(tiny.rows(n))
    ]


def defense(name, folder):
    """A defense whose own rows are other ones than the run's."""
    one = without_sampling(name, folder)
    for field in ("pool", "prompts"):
        if hasattr(one, field):
            write_examples(getattr(one, field), other_rows(12))
    changes = {"share": 0.25} if hasattr(type(one), "share") else {"most": 2} if name == "safelora" else {}
    return dataclasses.replace(one, **changes)
