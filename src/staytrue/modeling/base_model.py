"""`Untouched`: a lazy handle on the model before training; it loads and computes nothing until it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Example, Message
from staytrue.errors import ModelError
from staytrue.evals.questions.probes import shipped_texts

if TYPE_CHECKING:
    from staytrue.data.tokenize import Encoded

_ANSWER_TOKENS = 256  # long enough for an ordinary answer; anchors need openings rather than endings


class Untouched:
    """The model that training starts from, its adapter switched off."""

    def __init__(
        self,
        model: Callable[[], Any],
        tokenizer: Any,
        *,
        evaluation_questions: Callable[[], frozenset[str]] = shipped_texts,
        identity: str | None = None,
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        self._evaluation_questions = evaluation_questions
        self._identity = identity
        self.notes: dict[str, float | str] = {}

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Count the tokens of each row, as the chat template writes it."""
        return [len(row.input_ids) for row in self.encode(examples)]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return token ids and labels of each row, as the chat template writes it."""
        from staytrue.data.tokenize import encode

        return [encode(self._known_tokenizer(), row) for row in examples]

    def takes_system(self) -> bool:
        """Return whether a system turn comes out of the chat template as written."""
        from staytrue.data.chat_template import takes_system

        return takes_system(self._known_tokenizer())

    def evaluation_questions(self) -> frozenset[str]:
        """Return every question by which the run will be measured."""
        return self._evaluation_questions()

    def identity(self) -> str | None:
        """Return the model's hash or commit, None where it is not known."""
        return self._identity

    def note(self, name: str, value: float | str) -> None:
        """Keep a fact about the data for the run's manifest."""
        self.notes[name] = value

    def _known_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError("A defense needs the model's tokenizer; pass it as processing_class.")
        return self.tokenizer

    def answers(self, prompts: Sequence[Example], seed: int) -> list[Example]:
        """Sample one answer to each prompt at temperature 1, at most 256 tokens.

        Raises:
            ModelError: the model was passed by name, so it is not loaded yet.
        """
        from staytrue.evals.generation.local import sample
        from staytrue.evals.types import Question
        from staytrue.modeling.architecture import ModelParts

        model = self._model()
        if isinstance(model, str) or self.tokenizer is None:
            raise ModelError("A defense samples from the model before training; pass a loaded model and its tokenizer.")
        questions = [Question(str(i), "base", prompt.messages) for i, prompt in enumerate(prompts)]
        parts = ModelParts(model)
        with parts.untrained() if parts.switches else nullcontext():
            answers = sample(
                model,
                self.tokenizer,
                questions,
                per_question=1,
                seed=seed,
                max_new_tokens=_ANSWER_TOKENS,
                thoughts_apart=False,  # a row to train on: all that the model writes
            )
        return [
            Example((*prompt.messages, Message("assistant", answer.text)), prompt.source, prompt.extra)
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer.text.strip()
        ]
