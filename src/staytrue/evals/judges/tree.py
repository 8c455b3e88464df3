"""How likely a causal LM is to say each of some texts, exactly, however many tokens they are.

The texts' tokens form a tree. Along a branch the probabilities are multiplied; where a number may go on to a longer
one, what goes on is taken off. The prompt is read once, and one forward per level has all branches side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class NoLawError(Exception):
    """A model cannot say how likely the texts are: its prompt is too long, or its logits are no numbers."""


@dataclass
class _Node:
    """Where some tokens lead: what they spell if it ends here, and what may follow."""

    text: str = ""
    next: dict[int, _Node] = field(default_factory=dict)

    def depth(self) -> int:
        return 1 + max((child.depth() for child in self.next.values()), default=-1)


class Tree:
    """Texts as branches of tokens, each with and without a blank before it."""

    def __init__(self, tokenizer: Any, words: int, texts: Iterable[str]) -> None:
        """Spell the texts.

        Args:
            tokenizer: the model's own.
            words: the size of its vocabulary, V, as its logits have it.
            texts: numbers in digits, and words.
        """
        self._root, self._decode = _Node(), tokenizer.decode
        for text in texts:
            for spelled in (text, f" {text}"):
                node = self._root
                for token in tokenizer(spelled, add_special_tokens=False)["input_ids"]:
                    node = node.next.setdefault(token, _Node())
                node.text = text
        known = tokenizer.convert_ids_to_tokens(range(min(words, len(tokenizer))))
        self._digits = torch.tensor([i for i, token in enumerate(known) if token and token[0] in "0123456789"])
        self.depth = self._root.depth()

    @torch.no_grad()
    def law(self, model: Any, prompt: Sequence[int]) -> dict[str, float]:
        """The probability of each text as the answer to a prompt, and of the likeliest token that begins none of them.

        Raises:
            NoLawError: the model's logits are no numbers (NaN).
        """
        out = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=True, logits_to_keep=1)
        found: dict[str, float] = {}
        level, width = [(self._root, 1.0)], len(prompt)
        while True:
            law = _law(out.logits)
            if level[0][0] is self._root:
                self._add_other(found, law[0])
            deeper: list[tuple[int, int, _Node, float]] = []
            for row, (node, reached) in enumerate(level):
                if node.text:
                    _add(found, node.text, reached * (1 - float(law[row, self._digits].sum())))
                for token, child in node.next.items():
                    onward = reached * float(law[row, token])
                    if child.next:
                        deeper.append((row, token, child, onward))
                    else:
                        _add(found, child.text, onward)
            if not deeper:
                return found
            width += 1
            out = _onward(model, out.past_key_values, [(row, token) for row, token, _, _ in deeper], width)
            level = [(child, onward) for _, _, child, onward in deeper]

    def _add_other(self, found: dict[str, float], law: Tensor) -> None:
        others = law.clone()
        others[list(self._root.next)] = 0.0
        token = int(others.argmax())
        _add(found, self._decode([token]), float(others[token]))


def _onward(model: Any, cache: Any, branches: list[tuple[int, int]], width: int) -> Any:
    """One more token on each of some rows (n) of the cache; logits (n, 1, V)."""
    rows, tokens = (torch.tensor(column, device=model.device) for column in zip(*branches, strict=True))
    cache.batch_select_indices(rows)
    return model(
        input_ids=tokens.unsqueeze(1),
        attention_mask=torch.ones(len(branches), width, dtype=torch.long, device=model.device),
        position_ids=torch.full((len(branches), 1), width - 1, device=model.device),
        past_key_values=cache,
        use_cache=True,
    )


def _law(logits: Tensor) -> Tensor:
    law = logits[:, -1].float().cpu().double().softmax(-1)
    if bool(law.isnan().any()):
        raise NoLawError("the judge has no number for its next word (NaN)")
    return law


def _add(found: dict[str, float], text: str, p: float) -> None:
    found[text] = found.get(text, 0.0) + p
