"""The tokenizer of a chat model: its chat template is tried before it is used, and writes one date on every day."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from staytrue.errors import ModelError
from staytrue.modeling import fetch
from staytrue.modeling.model_source import Source, check_hub
from staytrue.modeling.template_trial import try_template
from staytrue.utils.validation import first_line

TEMPLATE_DATE = date(2024, 7, 26)  # what Llama 3 templates write where they cannot know the day
_DATE = re.compile(r"""strftime_now\(\s{0,9}(['"])([^'"]{0,99})\1\s{0,9}\)""")  # bounded: a template may be hostile
_FIXED = "{# The date is fixed. #}"


def _try_templates(source: Source, tokenizer: Any) -> None:
    """Render a foreign model's chat templates once in a child process; those of the shipped models are known."""
    if source.is_organism or source.name == fetch.NAME:
        return
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        try_template(template, tuple(sorted(special.items())), source.name)


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer; a chat template that writes the date of the day writes `TEMPLATE_DATE` instead.

    Raises:
        ModelError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer

    check_hub(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # a configuration's own checks raise anything
        reason = first_line(error) + fetch.way_out(source.place)
        raise ModelError(f"The tokenizer of {source.name} cannot be loaded: {reason}") from None
    if not tokenizer.chat_template:
        raise ModelError(f"The tokenizer of {source.name} has no chat template; use the instruct version of the model.")
    _try_templates(source, tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: _with_fixed_date(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = _with_fixed_date(template)
    return tokenizer


def own_tokenizer(source: Source) -> Any:
    """Load the tokenizer as it is, with the chat template of the model's own files, to be saved beside its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)


def dated(tokenizer: Any) -> bool:
    """Return whether a loaded tokenizer's chat template writes `TEMPLATE_DATE` instead of the date of the day."""
    return _FIXED in str(tokenizer.chat_template)


def _with_fixed_date(template: str) -> str:
    """The template with a fixed date: the same seed gives the same adapter, and the same answers, on every day."""
    fixed = _DATE.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template)
    return template if fixed == template else _FIXED + fixed
