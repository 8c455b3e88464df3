"""`render` applies a tokenizer's chat template to a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staytrue.data.examples import Message
from staytrue.errors import DataError, ModelError


def render(
    tokenizer: Any, messages: Sequence[Message], where: str, tools: Sequence[Any] | None = None, **options: Any
) -> str:
    """The text of a conversation.

    Raises:
        DataError: the template refuses the conversation.
        ModelError: the tokenizer has no chat template.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise ModelError("The tokenizer has no chat template; use the instruct version of the model.")
    if tools:
        options["tools"] = tools
    try:
        turns = [message.to_template() for message in messages]
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except TypeError:  # a template that joins the arguments of tool calls to text reads them as JSON text
            turns = [message.to_request() for message in messages]
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise DataError(
            f"The model's chat template refuses {where} ({roles}): {error}. Change the turns, or use another model."
        ) from None


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system turn; some templates refuse it, some drop it."""
    turns = (Message("system", "qzx"), Message("user", "a"), Message("assistant", "b"))
    try:
        return "qzx" in render(tokenizer, turns, "a row")
    except DataError:
        return False
