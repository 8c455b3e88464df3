"""`Message` and `Example`: one row of training or evaluation data, without tensors or tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True)
class Example:
    """One conversation and where it came from.

    `source` names the kind of row ("task" for the user's own data, "interleaved" for safe rows mixed in, ...);
    defenses touch only the sources that are their business.
    """

    messages: tuple[Message, ...]
    source: str = "task"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns before the last answer: what the model is given."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def question(self) -> str:
        """The last thing the user says."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    @property
    def answer(self) -> str:
        """The last answer ("" when the row is a bare prompt)."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""
