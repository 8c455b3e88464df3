"""The questions of an evaluation, as a set that knows them in another spelling too. No torch."""

from __future__ import annotations

from collections.abc import Iterable

_BEFORE, _AFTER = " \"'“‘(¿¡", " \"'”’).,;:!?…"


class Reserved(frozenset[str]):
    """Questions that no training row may hold, whatever its case, its blanks, or the punctuation at its ends.

    >>> "what of  ME" in Reserved(["What of me?"])
    True
    >>> "And what of me?" in Reserved(["What of me?"])
    False
    """

    _plain: frozenset[str]

    def __new__(cls, questions: Iterable[str]) -> Reserved:
        """Keep the questions, and what a spelling does not change of them."""
        made = super().__new__(cls, questions)
        made._plain = frozenset(map(_plain, made))
        return made

    def __contains__(self, question: object) -> bool:
        return isinstance(question, str) and _plain(question) in self._plain


def _plain(text: str) -> str:
    """A question without what two spellings of it differ in; a minus before a number stays."""
    return " ".join(text.casefold().split()).lstrip(_BEFORE).rstrip(_AFTER)
