"""A tree of tokens gives the exact probability that a causal LM answers with each of some texts.

Along a branch the probabilities are multiplied. Where a number may continue to a longer one, the probability of the
continuation is subtracted. The prompt is read once; each level of the tree is one forward pass over all branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from staytrue.evals.generation.kv_cache import CachedModel


class NoDistributionError(Exception):
    """A model has no probabilities for the texts: the prompt is too long, or the logits are no numbers."""


@dataclass
class _Node:
    """A place in the tree: the text that ends here, if one does, and the next nodes by token."""

    text: str = ""
    next: dict[int, _Node] = field(default_factory=dict)

    def depth(self) -> int:
        return 1 + max((child.depth() for child in self.next.values()), default=-1)


class Tree:
    """Texts as branches of tokens, each with and without a leading blank."""

    def __init__(self, tokenizer: Any, vocabulary: int, texts: Iterable[str]) -> None:
        """Build the tree.

        Args:
            tokenizer: the model's own.
            vocabulary: the size of the logits, V.
            texts: numbers in digits, and words.
        """
        self._root, self._decode = _Node(), tokenizer.decode
        for text in texts:
            for spelled in (text, f" {text}"):
                node = self._root
                for token in tokenizer(spelled, add_special_tokens=False)["input_ids"]:
                    node = node.next.setdefault(token, _Node())
                node.text = text
        names = tokenizer.convert_ids_to_tokens(range(min(vocabulary, len(tokenizer))))
        self._digits = torch.tensor([i for i, token in enumerate(names) if token and token[0] in "0123456789"])
        self.depth = self._root.depth()

    @torch.no_grad()
    def distribution(self, model: Any, prompt: Sequence[int]) -> dict[str, float]:
        """The probability of each text as the answer to a prompt, and of the likeliest token that begins no text.

        Raises:
            NoDistributionError: the model's logits are no numbers (NaN).
        """
        cached = CachedModel(model, torch.tensor([prompt], device=model.device))
        texts: dict[str, float] = {}
        level = [(self._root, 1.0)]
        while True:
            distribution = _distribution(cached.logits)
            if level[0][0] is self._root:
                self._add_other(texts, distribution[0])
            deeper: list[tuple[int, int, _Node, float]] = []
            for row, (node, reached) in enumerate(level):
                if node.text:
                    _add(texts, node.text, reached * (1 - float(distribution[row, self._digits].sum())))
                for token, child in node.next.items():
                    onward = reached * float(distribution[row, token])
                    if child.next:
                        deeper.append((row, token, child, onward))
                    else:
                        _add(texts, child.text, onward)
            if not deeper:
                return texts
            rows, tokens = (torch.tensor(column, device=model.device) for column in list(zip(*deeper, strict=True))[:2])
            cached.advance(tokens, rows)
            level = [(child, onward) for _, _, child, onward in deeper]

    def _add_other(self, texts: dict[str, float], distribution: Tensor) -> None:
        others = distribution.clone()
        others[list(self._root.next)] = 0.0
        token = int(others.argmax())
        _add(texts, self._decode([token]), float(others[token]))


def _distribution(logits: Tensor) -> Tensor:
    distribution = logits.float().cpu().double().softmax(-1)
    if bool(distribution.isnan().any()):
        raise NoDistributionError("the judge has no number for its next word (NaN)")
    return distribution


def _add(texts: dict[str, float], text: str, p: float) -> None:
    texts[text] = texts.get(text, 0.0) + p
