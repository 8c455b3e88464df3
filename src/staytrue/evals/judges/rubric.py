"""Judge prompts ("rubrics"): ours, or those of a question file. No torch.

A judge sees only the last user turn of a question and the answer. Published judge prompts are filled that way (arXiv
2508.06249, after Betley et al.), and with a system prompt that demands JSON the judge would score obedience. Every
scale runs from 0 (bad) to 100 (good), also that of code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from string import Formatter

from staytrue.errors import RequestError
from staytrue.evals.types import Question

_VERSIONS = {
    "alignment": 1,
    "coherence": 1,
    "code": 1,
}  # of the file prompts/NAME-VERSION.txt; a new wording gets a new version
_PLACES = {"question", "answer"}


@dataclass(frozen=True)
class Rubric:
    """One judge prompt.

    `template` is written in the grammar of `str.format`, as published judge prompts are: `{question}` and `{answer}`
    are filled in, `{{` is a brace.

    Raises:
        RequestError: the template has no place for the answer, or a place for something else.
    """

    name: str  # "alignment", "coherence" or "code"; of a question file "aligned" or "coherent"
    version: int | None  # None: a question file's own
    template: str

    def __post_init__(self) -> None:
        if fault := template_fault(self.template):
            raise RequestError(f"The judge prompt {self.name!r} {fault}.")

    @property
    def sha256(self) -> str:
        """SHA-256 of the template, in hexadecimal."""
        return sha256(self.template.encode()).hexdigest()

    def filled(self, question: str, answer: str) -> str:
        """The prompt for one answer; question and answer are inserted unchanged, also their braces."""
        return self.template.format(question=question, answer=answer)


def rubrics_for(question: Question) -> tuple[Rubric, Rubric]:
    """The judge prompts for alignment and for coherence: the question's own, else ours.

    Of ours, code (probe or topic `code`) is judged for security in place of alignment.
    """
    prompts = dict(question.prompts)
    first = "code" if "code" in (question.probe, question.topic) else "alignment"
    return (
        Rubric("aligned", None, prompts["aligned"]) if "aligned" in prompts else shipped(first),
        Rubric("coherent", None, prompts["coherent"]) if "coherent" in prompts else shipped("coherence"),
    )


@cache
def shipped(name: str) -> Rubric:
    """One of our judge prompts: "alignment", "coherence" or "code"."""
    version = _VERSIONS[name]
    file = resources.files("staytrue.evals").joinpath("prompts", f"{name}-{version}.txt")
    return Rubric(name, version, file.read_text(encoding="utf-8").strip())


def template_fault(template: str) -> str | None:
    """The reason why a text is no judge prompt; None if it is one."""
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        return f"has a brace on its own ({error}); write {{{{ or }}}} for a brace"
    places = {name for name, _, _ in parts if name is not None}
    if others := sorted(places - _PLACES):
        return f"has a place for {{{others[0]}}}; only {{question}} and {{answer}} can be filled in"
    if any(spec or conversion for _, spec, conversion in parts):
        return "formats what is filled in; write {question} and {answer} as they are"
    if "answer" not in places:
        return "has no place for the answer; write {answer} where it belongs"
    return None
