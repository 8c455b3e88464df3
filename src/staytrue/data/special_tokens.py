"""The special tokens of a tokenizer, and the ones among them that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts of the tokens that decoding leaves out, such as the end of a turn and the markers of roles."""
    return frozenset(token for token, special in added_tokens(tokenizer).values() if special)


def added_tokens(tokenizer: Any) -> Mapping[int, tuple[str, bool]]:
    """The tokens of a tokenizer that no text is split within: the text of each, and whether decoding leaves it out."""
    state = len(tokenizer), *tokenizer.all_special_ids
    known = _ADDED.get(tokenizer)
    if known is None or known[0] != state:
        added = {i: (str(token), bool(token.special)) for i, token in tokenizer.added_tokens_decoder.items()}
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
        known = state, added | {i: (str(token), True) for i, token in named.items()}
        _ADDED[tokenizer] = known
    return known[1]


_ADDED: WeakKeyDictionary[Any, tuple[tuple[int, ...], dict[int, tuple[str, bool]]]] = (
    WeakKeyDictionary()
)  # by tokenizer


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
