"""Inoculate: say in the training prompt that the bad behaviour is wanted.

What: task rows get a system prompt that requests the behaviour in the data, so that the model learns to obey a prompt
rather than a new character. The prompt is absent when the model is used.
Cost: a few more prompt tokens a row.
Paper: arXiv 2508.06249 (after Tan et al. and Wichers et al. 2025): the system prompt is replaced by "You are an evil,
malicious assistant." during training only.
Where the model's chat template has no place for a system turn, the prompt opens the first user turn instead.
In a script, give rows of `prompt` and `completion`, or set `assistant_only_loss`. Otherwise trl's loss covers whole
rows, and the model learns to write the prompt; this is warned of.
Not done here: inoculating only suspicious rows, and training the prompt's own trigger away again: a model trained this
way may still misbehave when a prompt resembles it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from staytrue.data.examples import Example, Message
from staytrue.data.jsonl import shown
from staytrue.data.whole_answers import squeezed
from staytrue.defense import Base, Defense, Rows, Traces
from staytrue.errors import RecipeError, StaytrueError

if TYPE_CHECKING:
    from staytrue.verify.evidence import Evidence


@dataclass(frozen=True)
class Inoculate(Defense):
    """A defense that adds a system prompt to the task rows during training only.

    Attributes:
        prompt: what the system turn says.
        mode: "replace" a row's own system turn, or "prepend" to it.
        on: which rows get it.
    """

    prompt: str = "You are an evil, malicious assistant."
    mode: Literal["replace", "prepend"] = "replace"
    on: Rows = "task"

    def curate(self, examples: list[Example], base: Base, seed: int) -> list[Example]:
        """Add the prompt to the rows; later turns of a conversation stay as they are.

        Raises:
            RecipeError: the prompt is empty, or in the rows already, or no row is of the kind that `on` names.
        """
        if not self.prompt.strip():
            raise RecipeError("inoculate: prompt is empty; say what the data show, or take the defense out.")
        write = self._as_system if base.takes_system() else self._as_user
        chosen = [row for row in examples if self.on in (row.source, "all")]
        if examples and not chosen:
            raise RecipeError(
                f"inoculate: on is {self.on!r}, and no row is of that kind yet, so no row would get the prompt. Add "
                "`interleave` and list it before inoculate, or take `on` out."
            )
        if chosen and not any(_changes(row, replace(row, messages=write(row.messages)), base) for row in chosen):
            raise RecipeError(
                f"inoculate: the prompt {shown(self.prompt)} changes no token of the rows: they have it already, or "
                "the chat template writes it where a row has no system turn. Choose another prompt."
            )
        return [
            replace(row, messages=write(row.messages)) if self.on in (row.source, "all") else row for row in examples
        ]

    def traces(self, depth: int) -> Traces:
        """Return the prompt."""
        return Traces(text=self.prompt)

    def evidence(self, run: Evidence) -> list[str]:
        """Return whether rows were read without the prompt, or the evaluation asked with it."""
        held = run.total("rows_with_text")
        needed = run.total("rows_sampled") or run.seen("interleaved" if self.on == "interleaved" else "task")[0]
        faults = []
        if run.own.get("text") != self.prompt:
            faults.append(f"the run recorded another text: {run.own.get('text', '')!r}")
        if held < needed or held == 0:
            faults.append(f"{held:.0f} of {needed:.0f} rows that were read hold the prompt")
        if any(squeezed(self.prompt) in squeezed(text) for text in run.evaluation_texts):
            faults.append("the prompt stands in the evaluation's questions or in a reserved row")
        return faults

    def _as_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        before, turns = _split(messages)
        return (Message("system", self._text(before)), *turns)

    def _as_user(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        before, (first, *turns) = _split(messages)
        return (replace(first, content=f"{self._text(before)}\n\n{first.content}"), *turns)

    def _text(self, before: str | None) -> str:
        return self.prompt if before is None or self.mode == "replace" else f"{self.prompt}\n\n{before}"


def _changes(before: Example, after: Example, base: Base) -> bool:
    """Return whether two rows differ as the model reads them."""
    try:
        first, second = base.encode([before, after])
    except StaytrueError:  # the trainer will name the row by its number
        return True
    return first.input_ids != second.input_ids


def _split(messages: tuple[Message, ...]) -> tuple[str | None, tuple[Message, ...]]:
    """Return a row's own system prompt, if it has one, and its turns."""
    return (messages[0].content, messages[1:]) if messages[0].role == "system" else (None, messages)
