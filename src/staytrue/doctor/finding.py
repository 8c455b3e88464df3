"""`Finding`: one line of `staytrue doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that was looked at.

    Attributes:
        what: the subject, a word or two.
        says: what was found.
        remedy: what to do; None if all is well.
        hinders: whether the remedy is needed for staytrue to work, and is more than advice.
    """

    what: str
    says: str
    remedy: str | None = None
    hinders: bool = True
