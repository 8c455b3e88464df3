"""The names of judges: `rules`, `local:MODEL` or `openai:MODEL[@URL]`. No torch, no openai."""

from __future__ import annotations

from dataclasses import dataclass

from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.address import parse as parse_address


@dataclass(frozen=True)
class Rules:
    """The rules of the organism's world."""

    def __str__(self) -> str:
        return "rules"


@dataclass(frozen=True)
class Local:
    """A causal LM in this process, with its full logits."""

    model: str  # a folder, or a name as in a recipe's `model:`

    def __str__(self) -> str:
        return f"local:{self.model}"


def parse(text: str) -> Rules | Local | Address:
    """The judge that a text names.

    Raises:
        RequestError: the text names none.
    """
    kind, _, rest = text.strip().partition(":")
    if text.strip() == "rules":
        return Rules()
    if kind == "local" and rest:
        return Local(rest)
    if kind == "openai" and rest:
        return parse_address(text)
    raise RequestError(
        f"{text!r} names no judge. Write one of: rules (the organism's own), local:FOLDER (a model on this machine; or "
        "local:smollm2), openai:MODEL or openai:MODEL@URL (a model at an OpenAI-compatible endpoint)."
    )
