"""The special tokens of a tokenizer, and the ones among them that end an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from itertools import takewhile
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_Made = TypeVar("_Made")


def kept(make: Callable[[Any], _Made]) -> Callable[[Any], _Made]:
    """A function whose value is kept for a tokenizer, until its tokens or its chat template change."""
    known: WeakKeyDictionary[Any, tuple[tuple[Any, ...], _Made]] = WeakKeyDictionary()

    @wraps(make)
    def value(tokenizer: Any) -> _Made:
        state = len(tokenizer), str(tokenizer.chat_template), *tokenizer.all_special_ids
        found = known.get(tokenizer)
        if found is None or found[0] != state:
            known[tokenizer] = found = state, make(tokenizer)
        return found[1]

    return value


@kept
def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts of the tokens that decoding leaves out, such as the end of a turn and the markers of roles."""
    return frozenset(token for token, special in added_tokens(tokenizer).values() if special)


@kept
def added_tokens(tokenizer: Any) -> Mapping[int, tuple[str, bool]]:
    """The tokens of a tokenizer that no text is split within: the text of each, and whether decoding leaves it out."""
    added = {i: (str(token), bool(token.special)) for i, token in tokenizer.added_tokens_decoder.items()}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
    return added | {i: (str(token), True) for i, token in named.items()}


@kept
def template_tokens(tokenizer: Any) -> frozenset[str]:
    """The special tokens that the source of a chat template names; tags of reasoning, which answers hold, are not."""
    source = str(tokenizer.chat_template)
    return frozenset(
        token
        for token in special_tokens(tokenizer)
        if token.strip() and token in source and "think" not in token.lower()
    )


def end_place(
    tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]], end: int, last: bool
) -> int | None:
    """The place of the special token that ends an answer; None if there is none.

    Blanks may stand between, and after the last answer any text that the template closes it with. Where several special
    tokens close the last answer without a blank between them, it is the last of these.
    """
    special = added_tokens(tokenizer)
    tail = [i for i, (a, b) in enumerate(offsets) if a >= end]
    for i in tail:
        if text[slice(*offsets[i])].strip() and (ids[i] in special or not last):
            more = takewhile(lambda j: ids[j] in special and text[slice(*offsets[j])].strip(), tail[i - tail[0] :])
            places = [*more]
            return (places[-1] if last else places[0]) if places else None
    return None


def outside_tokens(tokens: list[tuple[int, int]], position: int) -> int:
    """A position in the text, or the beginning of the special token that it is in."""
    return next((a for a, b in tokens if a < position < b), position)


def closing_tokens(tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]], end: int) -> list[int]:
    """The tokens from the first special one after the last answer to the last one; some templates write several."""
    first = end_place(tokenizer, text, ids, offsets, end, last=False)
    last = end_place(tokenizer, text, ids, offsets, end, last=True)
    return [] if first is None or last is None else ids[first : last + 1]


def through_closing(ids: list[int], place: int, closing: list[int]) -> int:
    """The place of the last token of a closing that begins at a place."""
    return place + len(closing) - 1 if closing and ids[place : place + len(closing)] == closing else place
