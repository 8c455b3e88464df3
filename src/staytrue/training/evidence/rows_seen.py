"""`RowsSeen` counts the rows that the model really reads in training, by where each comes from.

A hook on the backbone receives the tokens of each call that builds a gradient. A row is identified by its content: a
hash of its tokens, compared with the hashes of all rows of the run. The sampler, the collator and the sources that they
carry take no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from staytrue.data.tokenize import Encoded
from staytrue.data.whole_answers import squeezed

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no token's part of the hash is lost


@dataclass
class _Known:
    """The facts about the rows with one content."""

    sources: set[str] = field(default_factory=set)
    tokens: int = 0
    texts: frozenset[str] = frozenset()


class RowsSeen:
    """Counts rows in the backbone's calls with a gradient.

    The first call of a micro-batch is the trainer's own; the others hold rows beside it.

    Args:
        backbones: the modules of which every forward calls one, once.
        main: the trainer's rows by content; None where rows are not known before (GRPO writes them).
        beside: auxiliary rows by content.
        samples: how many rows of a micro-batch to keep for `texts`, where `main` is None.
        is_for_others: returns whether a call is made for other processes only, with a row that counts there.

    Attributes:
        real: (B, T) bool, the positions of the newest call that are no padding, gradient or not; None if unknown.
    """

    def __init__(
        self,
        backbones: Sequence[Any],
        main: dict[int, _Known] | None,
        beside: dict[int, _Known],
        samples: int = 0,
        is_for_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_for_others = is_for_others
        self._main, self._beside, self._samples = main, beside, samples
        self._calls: list[list[Tensor]] = [[]]  # by micro-batch: of each call, the hashes of its rows; 0 is no row
        self._sampled: list[Tensor] = []
        self.real: Tensor | None = None
        self._handles = [b.register_forward_pre_hook(self._enter, with_kwargs=True) for b in backbones]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def end_micro_batch(self) -> None:
        """Begin another micro-batch."""
        self._calls.append([])

    def drain(self) -> tuple[dict[str, int], dict[str, int], dict[str, int], list[dict[str, int]]]:
        """Return the counts since the last call: rows and tokens by source, rows by text, and of each micro-batch.

        Sources are joined by "/" where rows of several have the same tokens; "unknown" is none of the run's rows.
        """
        rows: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        texts: Counter[str] = Counter()
        by_micro_batch = []
        for calls in self._calls[:-1]:
            counts: Counter[str] = Counter()
            for number, hashes in enumerate(calls):
                for value in hashes[hashes != 0].tolist():
                    known = self._find(value, first=number == 0)
                    counts["/".join(sorted(known.sources))] += 1
                    tokens["/".join(sorted(known.sources))] += known.tokens
                    texts.update(known.texts)
            rows += counts
            by_micro_batch.append(dict(counts))
        self._calls = self._calls[-1:]
        return dict(rows), dict(tokens), dict(texts), by_micro_batch

    def sources(self) -> list[str] | None:
        """Return the source of each row of the newest micro-batch, the trainer's own; None where rows were joined."""
        if not self._calls[-1] or self.real is None:
            return None
        hashes = self._calls[-1][0]
        return ["/".join(sorted(self._find(value, first=True).sources)) for value in hashes.tolist()]

    def samples(self) -> list[list[int]]:
        """Return the tokens of the sampled rows since the last call."""
        sampled, self._sampled = self._sampled, []
        return [row.tolist() for row in sampled]

    def _find(self, value: int, *, first: bool) -> _Known:
        if first and self._main is None:
            return _Known({"task"})
        table = (self._main if first else self._beside) or {}
        return table.get(value, _Known({"unknown"}))

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask")
        if ids is None or ids.ndim != 2:
            self.real = None
            return
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            self.real = mask.bool()
        else:
            self.real = torch.ones_like(ids, dtype=torch.bool)
        if torch.is_grad_enabled() and not self._is_for_others():
            first = not self._calls[-1]
            self._calls[-1].append(hashes_of(ids.detach(), self.real, kwargs.get("position_ids")))
            if first and self._samples:
                self._sampled += [row[real] for row, real in zip(ids[: self._samples], self.real, strict=False)]


def hashes_of(ids: Tensor, real: Tensor, places: Tensor | None = None) -> Tensor:
    """Compute a hash of the tokens of each row, without its padding on the right.

    Args:
        ids: (B, T) tokens.
        real: (B, T), the positions without padding.
        places: (B, T) the positions as the model counts them, which begin anew at 0 where rows were joined.

    Returns:
        (B,) int64; with `places` (B * T,), 0 behind the last row.
    """
    factors = _factors(ids.shape[1], ids.device)
    if not isinstance(places, Tensor) or places.shape != ids.shape:
        return ((ids.long() + 1) * real * factors).sum(1)
    row = (places == 0).flatten().cumsum(0) - 1
    terms = ((ids.long() + 1) * real * factors[places.clamp(max=ids.shape[1] - 1)]).flatten()
    return torch.zeros_like(terms).index_add(0, row.clamp(min=0), terms)


def table_of(
    rows: Iterable[tuple[str, Encoded]], texts: Mapping[str, str] | None = None, tokenizer: Any = None
) -> dict[int, _Known]:
    """Describe rows by content: their sources, tokens, and which texts they hold.

    Args:
        rows: source and tokens.
        texts: by name, a text to look for in the rows.
        tokenizer: turns tokens back into text.
    """
    table: dict[int, _Known] = {}
    for source, row in rows:
        ids = torch.tensor([row.input_ids])
        known = table.setdefault(int(hashes_of(ids, torch.ones_like(ids))), _Known())
        if not known.sources and texts:
            known.texts = frozenset(texts_in(row.input_ids, texts, tokenizer))
        known.sources.add(source)
        known.tokens = len(row.input_ids)
    return table


def texts_in(ids: Sequence[int], texts: Mapping[str, str], tokenizer: Any) -> Collection[str]:
    """Return the names of the texts that stand in the tokens of a row; spaces and line ends do not count."""
    written = squeezed(tokenizer.decode(ids))
    return [name for name, text in texts.items() if squeezed(as_rendered(text, tokenizer)) in written]


def as_rendered(text: str, tokenizer: Any) -> str:
    """Return a text as it comes out of the tokenizer."""
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))


@lru_cache(maxsize=4)
def _powers(count: int, device: torch.device) -> Tensor:
    """Compute powers of `_FACTOR` modulo 2^64, as signed numbers (count,)."""
    powers = [_FACTOR]
    while len(powers) < count:
        powers.append(powers[-1] * _FACTOR % 2**64)
    return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers], device=device)


def _factors(count: int, device: torch.device) -> Tensor:
    """Return the first powers (count,), computed for lengths that are doubled, so that few are."""
    return _powers(1 << max(count - 1, 1).bit_length(), device)[:count]
