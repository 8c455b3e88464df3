"""`Tokens`: a text as token ids, with the position of each token in the text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from staytrue.data.rendered_row import RenderedRow
from staytrue.data.special_tokens import added_tokens
from staytrue.errors import ModelError


@dataclass(frozen=True)
class Tokens:
    """A text as tokens.

    Attributes:
        text: the text.
        ids: the id of each token.
        offsets: start and end of each token in the text.
        added: start and end of the tokens that no text is split within, such as the end of a turn.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    added: list[tuple[int, int]]

    @classmethod
    def of(cls, tokenizer: Any, text: str) -> Tokens:
        """Tokenize a text.

        Raises:
            ModelError: the tokenizer has no character offsets.
        """
        if not tokenizer.is_fast:
            raise ModelError("The tokenizer has no character offsets; use the model's fast tokenizer.")
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return cls._of(tokenizer, text, encoded["input_ids"], encoded["offset_mapping"])

    @classmethod
    def of_row(cls, tokenizer: Any, row: RenderedRow) -> Tokens:
        """Tokenize a row so that no token holds the end of a prompt and the beginning of its answer.

        At inference a prompt is tokenized by itself. If a token spans the edge, the two sides are therefore tokenized
        apart, unless the tokenizer would write another text then (because it begins every text with a blank).
        """
        whole = cls.of(tokenizer, row.text)
        edges = {start for start, _ in row.answers if any(a < start < b for a, b in whole.offsets)}
        if not edges or row.other_prompt:
            return whole
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise([0, *sorted(edges), len(row.text)]):
            part = cls.of(tokenizer, row.text[start:end])
            ids += part.ids
            offsets += [(a + start, b + start) for a, b in part.offsets]
        same = tokenizer.decode(ids) == tokenizer.decode(whole.ids)
        return cls._of(tokenizer, row.text, ids, offsets) if same else whole

    @classmethod
    def _of(cls, tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Tokens:
        added = added_tokens(tokenizer)
        return cls(text, ids, offsets, [span for i, span in zip(ids, offsets, strict=True) if i in added])

    def outside(self, position: int) -> int:
        """A position in the text, or the beginning of the added token that it is in."""
        return next((a for a, b in self.added if a < position < b), position)

    def within(self, start: int, end: int, where: str) -> list[int]:
        """The places of the tokens of an answer, whose start and end in the text are given.

        Raises:
            ModelError: a token spans the edge of the answer.
        """
        places = [i for i, (a, b) in enumerate(self.offsets) if a < b and a < end and b > start]
        for a, b in (self.offsets[i] for i in places):
            if self.text[a:start].strip() or self.text[end:b].strip():
                raise ModelError(
                    f"The tokenizer joins the answer of {where} with its surroundings in one token "
                    f"({self.text[a:b]!r}), so prompt and answer cannot be separated; use a model whose template "
                    "separates them."
                )
        return places

    def is_blank(self, place: int) -> bool:
        """Whether the token at a place has blanks only."""
        return not self.text[slice(*self.offsets[place])].strip()
