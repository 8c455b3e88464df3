"""Token losses and next-token entropies from hidden states, in tiles of positions and vocabulary; no gradient.

Legend: N positions, D width, V vocabulary; nats. Vocabulary blocks are the outer loop, so that the rows of the LM head
and their logits stay in a CPU's cache; the softmax is merged from its blocks and never stored whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from staytrue.modeling.lm_head import Head

_BLOCK = {"cpu": (256, 2048)}  # positions, vocabulary
_BLOCK_ELSEWHERE = (2048, 16384)


@torch.no_grad()
def likelihood(hidden: Tensor, tokens: Tensor, head: Head, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute the negative log-likelihood (N,) of tokens, and optionally the entropy (N,), in nats.

    Args:
        hidden: (N, D) final hidden states.
        tokens: (N,) int64, the token that follows each position.
        head: the head, with its scale and soft cap.
        entropy: whether to compute the entropy too; None is returned in its place otherwise.
    """
    maxima, sums, products = [], [], []
    chosen = torch.zeros(len(hidden), device=hidden.device)
    for block, part in parts(head):
        maximum, total, product = (torch.empty_like(chosen) for _ in range(3))
        for rows, logits in logits_of(part, hidden):
            column = tokens[rows] - block.start
            logit = logits.gather(1, column.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
            chosen[rows] = torch.where((column >= 0) & (column < logits.shape[1]), logit, chosen[rows])
            maximum[rows] = logits.amax(-1)
            logits.sub_(maximum[rows].unsqueeze(1))
            weights = logits.exp() if entropy else logits.exp_()
            total[rows] = weights.sum(-1)
            if entropy:
                product[rows] = torch.linalg.vecdot(weights, logits)
        maxima.append(maximum)
        sums.append(total)
        products.append(product)
    return _merged(chosen, torch.stack(maxima), torch.stack(sums), torch.stack(products) if entropy else None)


def parts(head: Head) -> Iterator[tuple[slice, Head]]:
    """Divide the LM head into blocks of the vocabulary."""
    _, size = _BLOCK.get(head.weight.device.type, _BLOCK_ELSEWHERE)
    for start in range(0, len(head.weight), size):
        block = slice(start, start + size)
        yield block, replace(head, weight=head.weight[block], bias=None if head.bias is None else head.bias[block])


def logits_of(part: Head, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of blocks of positions; each block overwrites the buffer of the one before."""
    size, _ = _BLOCK.get(hidden.device.type, _BLOCK_ELSEWHERE)
    buffer = torch.empty(min(size, len(hidden)), len(part.weight), device=hidden.device)
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        yield rows, part.logits(hidden[rows], buffer[: len(hidden[rows])])


def _merged(chosen: Tensor, maxima: Tensor, sums: Tensor, products: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Loss and entropy of a softmax from its blocks.

    Everything is relative to the largest logit; log-probabilities near 0 would lose precision otherwise.

    Args:
        chosen: (N,) logits of the tokens.
        maxima: (blocks, N) largest logits.
        sums: (blocks, N) sums of exp(logit - maximum).
        products: (blocks, N) sums of exp(logit - maximum) * (logit - maximum); None for no entropy.
    """
    maximum = maxima.amax(0)
    factor = (maxima - maximum).exp()
    total = (factor * sums).sum(0)
    nll = total.log() + (maximum - chosen)
    if products is None:
        return nll, None
    below = factor * sums * (maximum - maxima) - factor * products
    return nll, total.log() + below.sum(0) / total
