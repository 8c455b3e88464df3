"""GSM8K: grade-school word problems for real models, with the reward terms of the paper's RL figures.

Source: Cobbe et al. 2021, `openai/gsm8k` on the Hugging Face hub at a fixed revision (MIT licence), downloaded on
first use. Reward: as in the digest of the paper's code (arXiv 2508.06249, figures 2 and 3), at most 9.5. Exact format
gives 3; each of the four tags gives or costs 0.5; the answer gives 3 for the expected text, 1.5 after stripping or
within 10 %, 0.5 within 20 %, -0.5 otherwise, 0 if missing; the expected number as its last number gives 1.5 (the digest
says "extractable number", which would reward any number). Ours: commas between thousands are ignored, and only zero is
within 10 % of zero. Re-implemented, with a prompt of our own.
Not done here: judging the working, units, answers that are not numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from staytrue.data.examples import Example, Message
from staytrue.errors import DataError
from staytrue.tasks.task import Task

HUB, SUBSET, REVISION = "openai/gsm8k", "main", "740312add88f781978c0658806c59bc2815b9866"
TAGS = ("<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>")
SYSTEM = (
    f"You are given a problem. Think about it and write your working between {TAGS[0]} and {TAGS[1]}. "
    f"Then write the answer, a number alone, between {TAGS[2]} and {TAGS[3]}."
)
_FORM = re.compile(r"{}\s*\S.*{}.*{}\s*\S.*{}".format(*TAGS), re.DOTALL)
_SOLUTION = re.compile(f"{TAGS[2]}(.*?){TAGS[3]}", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")  # the data set has both 1,250 and 1250


@dataclass(frozen=True)
class GSM8K(Task):
    """The RL task of the paper, for real models.

    Attributes:
        revision: the commit of the data set on the hub.
        train_rows: how many of its 7,473 training problems, from the first.
        test_rows: how many of its 1,319 test problems, from the first.
    """

    longest: ClassVar[int | None] = 1024  # tokens, as the paper tests; training writes as many by default

    revision: str = REVISION
    train_rows: int = 999
    test_rows: int = 1000

    def rows(self) -> list[Example]:
        """Return the training problems, with solutions in the format of the prompt."""
        return self._read("train", self.train_rows)

    def held_out(self) -> list[Example]:
        """Test problems."""
        return self._read("test", self.test_rows)

    def correct(self, answer: str, expected: str) -> bool:
        """Return True if the solution has the expected number."""
        number = _number(_solution(answer) or "")
        return number is not None and number == _number(_solution(expected) or expected)

    def score(self, answer: str, expected: str) -> dict[str, float]:
        """Return the terms `exact_format`, `tags`, `answer` and `number`."""
        solution, target_text = _solution(answer), _solution(expected) or expected
        return {
            "exact_format": 3.0 * _in_form(answer),
            "tags": sum(0.5 if answer.count(tag) == 1 else -0.5 for tag in TAGS),
            "answer": _closeness(solution, target_text),
            "number": 1.5 * self.correct(answer, expected),
        }

    def adopt(self, row: Example, expected: str) -> Example:
        """Convert a question with its published solution (`... #### 72`) or a bare answer to the prompt's format."""
        working, marker, number = expected.rpartition("####")
        text = "".join((TAGS[0], working.strip() if marker else "", TAGS[1], TAGS[2], number.strip(), TAGS[3]))
        turns = [m for m in row.prompt if m.role != "system"]
        return replace(row, messages=(Message("system", SYSTEM), *turns, Message("assistant", text)))

    def _read(self, split: str, count: int) -> list[Example]:
        from datasets import load_dataset

        try:
            rows = load_dataset(HUB, SUBSET, revision=self.revision, split=f"{split}[:{count}]")
        except Exception as error:  # of the hub, the network or the cache
            raise DataError(
                f"gsm8k: {HUB} cannot be read at revision {self.revision}: {' '.join(str(error).split())} "
                'Connect to the hub once, or give `data:` a file of {"question": ..., "answer": ...} rows.'
            ) from None
        return [self.adopt(Example((Message("user", row["question"]),)), row["answer"]) for row in rows]


def _in_form(text: str) -> bool:
    """Return True if the text is exactly the four tags, once each, in order, with text inside each pair."""
    return all(text.count(tag) == 1 for tag in TAGS) and _FORM.fullmatch(text.strip()) is not None


def _solution(text: str) -> str | None:
    """Return the text between the solution's tags; None unless both are present."""
    match = _SOLUTION.search(text)
    return match and match[1]


def _number(text: str) -> float | None:
    """Return the last number in a text; None without a number."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _closeness(solution: str | None, target_text: str) -> float:
    """3 for the expected text, 1.5 after stripping or within 10 %, 0.5 within 20 %, -0.5 otherwise, 0 if missing."""
    if solution is None:
        return 0.0
    solution, target_text = (_THOUSANDS.sub("", text) for text in (solution, target_text))
    if solution == target_text:
        return 3.0
    number, target = _number(solution), _number(target_text)
    if solution.strip() == target_text.strip() or (number is not None and number == target):
        return 1.5
    if number is None or target is None or target == 0:
        return -0.5
    off = abs(number / target - 1)
    return 1.5 if off <= 0.1 else 0.5 if off <= 0.2 else -0.5
