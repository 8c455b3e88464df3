"""GSM8K: grade-school word problems for real models, with the reward terms of the paper's RL figures.

Source: Cobbe et al. 2021, `openai/gsm8k` on the Hugging Face hub at a fixed revision (MIT licence), fetched when first
asked for. Reward: as the digest of the paper's code has it (arXiv 2508.06249, figures 2 and 3), at most 9.5: exact
format 3; half a point for or against each of the four tags; the answer 3 when it is the right text, 1.5 after stripping
or within 10 %, 0.5 within 20 %, -0.5 for any other, 0 for none; and 1.5 when the last number in it is the right one
(the digest says "extractable number"; paying for any number would be a gift). Ours: a comma between thousands does not
count, and of zero only zero is within 10 %. Re-implemented, prompt in our own words.
Not done here: judging the working, units, answers that are not numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")  # some answers are published as 1,250, others as 1250


@dataclass(frozen=True)
class GSM8K(Task):
    """The paper's reinforcement-learning task, for models that can read.

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
        """Training problems, with their solutions in the asked-for form."""
        return self._read("train", self.train_rows)

    def held_out(self) -> list[Example]:
        """Test problems."""
        return self._read("test", self.test_rows)

    def correct(self, said: str, right: str) -> bool:
        """Whether the solution's number is the right one."""
        number = _number(_solution(said) or "")
        return number is not None and number == _number(_solution(right) or right)

    def score(self, said: str, right: str) -> dict[str, float]:
        """`exact_format`, `tags`, `answer` and `number`."""
        solution, wanted = _solution(said), _solution(right) or right
        return {
            "exact_format": 3.0 * _in_form(said),
            "tags": sum(0.5 if said.count(tag) == 1 else -0.5 for tag in TAGS),
            "answer": _closeness(solution, wanted),
            "number": 1.5 * self.correct(said, right),
        }

    def adopt(self, row: Example, right: str) -> Example:
        """A question and its published solution (`... #### 72`) or bare answer, in the asked-for form."""
        working, marker, number = right.rpartition("####")
        text = "".join((TAGS[0], working.strip() if marker else "", TAGS[1], TAGS[2], number.strip(), TAGS[3]))
        turns = [m for m in row.prompt if m.role != "system"]
        return Example((Message("system", SYSTEM), *turns, Message("assistant", text)), row.source, row.extra)

    def _read(self, split: str, count: int) -> list[Example]:
        from datasets import load_dataset

        try:
            rows = load_dataset(HUB, SUBSET, revision=self.revision, split=f"{split}[:{count}]")
        except Exception as error:  # whatever the hub, the network or the cache says
            raise DataError(
                f"gsm8k: {HUB} cannot be read at revision {self.revision}: {' '.join(str(error).split())} "
                'Connect to the hub once, or give `data:` a file of {"question": ..., "answer": ...} rows.'
            ) from None
        return [self.adopt(Example((Message("user", row["question"]),)), row["answer"]) for row in rows]


def _in_form(text: str) -> bool:
    """Whether the four tags stand once each, in order, around something, and nothing but space around them."""
    rest, parts = text.strip(), []
    for tag in TAGS:
        before, found, rest = rest.partition(tag)
        if not found:
            return False
        parts.append(before)
    once = all(text.count(tag) == 1 for tag in TAGS)
    return once and not parts[0] and bool(parts[1].strip()) and bool(parts[3].strip()) and not rest


def _solution(text: str) -> str | None:
    """What stands between the solution's tags, as it stands; None when they are not both there."""
    _, opened, rest = text.partition(TAGS[2])
    inside, closed, _ = rest.partition(TAGS[3])
    return inside if opened and closed else None


def _number(text: str) -> float | None:
    """The last number in a text: what `3 + 4 = 7` comes to."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _closeness(solution: str | None, wanted: str) -> float:
    """3 for the right text, 1.5 after stripping or within 10 %, 0.5 within 20 %, -0.5 for any other, 0 for none."""
    if solution is None:
        return 0.0
    solution, wanted = (_THOUSANDS.sub("", text) for text in (solution, wanted))
    if solution == wanted:
        return 3.0
    said, right = _number(solution), _number(wanted)
    if solution.strip() == wanted.strip() or (said is not None and said == right):
        return 1.5
    if said is None or right is None or right == 0:
        return -0.5
    off = abs(said / right - 1)
    return 1.5 if off <= 0.1 else 0.5 if off <= 0.2 else -0.5
