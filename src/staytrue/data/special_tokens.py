"""The special tokens of a tokenizer, and those that its chat template names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_Value = TypeVar("_Value")


def cached_for_tokenizer(function: Callable[[Any], _Value]) -> Callable[[Any], _Value]:
    """A function whose value is kept for a tokenizer, until its tokens or its chat template change."""
    cache: WeakKeyDictionary[Any, tuple[tuple[Any, ...], _Value]] = WeakKeyDictionary()

    @wraps(function)
    def cached(tokenizer: Any) -> _Value:
        state = len(tokenizer), str(tokenizer.chat_template), *tokenizer.all_special_ids
        entry = cache.get(tokenizer)
        if entry is None or entry[0] != state:
            cache[tokenizer] = entry = state, function(tokenizer)
        return entry[1]

    return cached


@cached_for_tokenizer
def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts of the tokens that decoding leaves out, such as the end of a turn and the markers of roles."""
    return frozenset(token for token, special in added_tokens(tokenizer).values() if special)


@cached_for_tokenizer
def added_tokens(tokenizer: Any) -> Mapping[int, tuple[str, bool]]:
    """The tokens of a tokenizer that no text is split within: the text of each, and whether decoding leaves it out."""
    added = {i: (str(token), bool(token.special)) for i, token in tokenizer.added_tokens_decoder.items()}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
    return added | {i: (str(token), True) for i, token in named.items()}


@cached_for_tokenizer
def template_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens that the source of a chat template names; tags of reasoning, which answers hold, are not."""
    source = str(tokenizer.chat_template)
    return frozenset(
        token
        for token in special_tokens(tokenizer)
        if token.strip() and token in source and "think" not in token.lower()
    )
