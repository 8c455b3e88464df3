"""`render` applies a tokenizer's chat template to a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
            if not any(written in text for written in _as_python_writes_them(turns)):
                return text
        except TypeError:  # a template that joins the arguments of tool calls to text
            pass
        turns = [message.to_template(arguments_as_text=True) for message in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise DataError(
            f"The model's chat template refuses {where} ({roles}): {error}. Change the turns, or use another model."
        ) from None


def _as_python_writes_them(turns: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The arguments of tool calls as a template writes them that takes them for JSON text, such as {'at': 'sky'}."""
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            if arguments and isinstance(arguments, dict):
                yield str(arguments)


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system turn; some templates refuse it, some drop it."""
    turns = (Message("system", "qzx"), Message("user", "a"), Message("assistant", "b"))
    try:
        return "qzx" in render(tokenizer, turns, "a row")
    except DataError:
        return False
