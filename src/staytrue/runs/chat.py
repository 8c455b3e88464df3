"""`Chat` puts the same turns to a trained model and to the untuned one, each with its own answers in its history."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Message
from staytrue.evals.types import Question
from staytrue.modeling.architecture import ModelParts

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator
    from staytrue.utils.console import Progress


@dataclass
class Chat:
    """One conversation, held with both models.

    Args:
        model: the untuned model with the run's adapter on it, or the whole trained model.
        tokenizer: of the model.
        system: the system turn; "" for none.
        temperature: 0 is greedy.
        max_new_tokens: most tokens of an answer.
        seed: of the sampled answers; the same turns get the same answers.
        untuned: the model before training, where `model` has no adapter.
    """

    model: Any
    tokenizer: Any
    system: str = ""
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    untuned: Any = None

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a new conversation."""
        opening = (Message("system", self.system),) if self.system else ()
        self._turns: dict[str, tuple[Message, ...]] = {"untuned": opening, "trained": opening}

    def reply(self, text: str, progress: Progress | None = None) -> tuple[str, str]:
        """Answer a user's turn with the untuned and the trained model.

        Args:
            text: the user's turn.
            progress: shows how much of the two answers is written.

        Returns:
            The untuned model's answer and the trained model's.
        """
        if progress is not None:
            progress.begin(2, "answer")
        with ModelParts(self.model).untrained() if self.untuned is None else nullcontext():
            untuned = self._answer("untuned", text, 0, progress)
        return untuned, self._answer("trained", text, 1, progress)

    @cached_property
    def _generators(self) -> dict[str, LocalGenerator]:
        from staytrue.evals.generation.local import LocalGenerator

        trained = LocalGenerator(self.model, self.tokenizer, batch_size=1)
        if self.untuned is None:
            return {"untuned": trained, "trained": trained}
        return {"untuned": LocalGenerator(self.untuned, self.tokenizer, batch_size=1), "trained": trained}

    def _answer(self, name: str, text: str, number: int, progress: Progress | None) -> str:
        history, generator = (*self._turns[name], Message("user", text)), self._generators[name]
        if progress is not None:
            generator.report = lambda: progress.step(number, {"work": number + generator.work})
        question = [(Question("chat", "chat", history), 0)]
        (answer,) = generator(
            question, seed=self.seed, temperature=self.temperature, max_new_tokens=self.max_new_tokens
        )
        self._turns[name] = (*history, Message("assistant", answer.text))
        return answer.text
