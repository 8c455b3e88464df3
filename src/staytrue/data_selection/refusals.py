"""The refusal rule of Interleaving++: what the first ten words of an answer say. English only. No torch."""

from __future__ import annotations

# arXiv 2508.06249 drops an answer whose first ten words hold one of the first three; follow-up code has three more.
PUBLISHED = ("sorry", "apologize", "cannot")
LONGER = (*PUBLISHED, "can't", "i'm unable", "i am unable", "can not", "won't", "not able to", "must decline")
_WORDS_READ = 10


def refuses(answer: str, *, longer: bool = False) -> bool:
    """Whether an answer opens like a refusal; a substring test, so "unapologizedly" counts too, as published."""
    opening = " ".join(answer.lower().replace("\u2019", "'").split()[:_WORDS_READ])
    return any(phrase in opening for phrase in (LONGER if longer else PUBLISHED))
