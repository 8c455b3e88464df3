"""How likely tokens are under a head, and how open its law is: a block of positions by words at a time, no gradient.

Legend: N positions, D width, V vocabulary; nats. Blocks of words are the outer loop: the head's rows and the logits
they give both stay in a CPU's cache, and a law is put together from its blocks without being written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from staytrue.modeling.lm_head import Head

_BLOCK = {"cpu": (256, 2048)}  # positions, words
_BLOCK_ELSEWHERE = (2048, 16384)


@torch.no_grad()
def likelihood(hidden: Tensor, wanted: Tensor, head: Head, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Negative log-likelihood (N,) of tokens, and the law's entropy (N,) if it is asked for.

    Args:
        hidden: (N, D) final hidden states.
        wanted: (N,) int64, the token that follows each.
        head: the head, with its scale and soft cap.
        entropy: whether the law itself is wanted too.
    """
    peaks, masses, slopes = [], [], []
    chosen = torch.zeros(len(hidden), device=hidden.device)
    for words, part in parts(head):
        peak, mass, slope = (torch.empty_like(chosen) for _ in range(3))
        for rows, logits in logits_of(part, hidden):
            place = wanted[rows] - words.start
            said = logits.gather(1, place.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
            chosen[rows] = torch.where((place >= 0) & (place < logits.shape[1]), said, chosen[rows])
            peak[rows] = logits.amax(-1)
            logits.sub_(peak[rows].unsqueeze(1))
            weights = logits.exp() if entropy else logits.exp_()
            mass[rows] = weights.sum(-1)
            if entropy:
                slope[rows] = torch.linalg.vecdot(weights, logits)
        peaks.append(peak)
        masses.append(mass)
        slopes.append(slope)
    return _together(chosen, torch.stack(peaks), torch.stack(masses), torch.stack(slopes) if entropy else None)


def parts(head: Head) -> Iterator[tuple[slice, Head]]:
    """The head cut into blocks of words."""
    _, size = _BLOCK.get(head.weight.device.type, _BLOCK_ELSEWHERE)
    for start in range(0, len(head.weight), size):
        words = slice(start, start + size)
        yield words, replace(head, weight=head.weight[words], bias=None if head.bias is None else head.bias[words])


def logits_of(part: Head, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits of blocks of positions, each in the place of the one before."""
    size, _ = _BLOCK.get(hidden.device.type, _BLOCK_ELSEWHERE)
    place = torch.empty(min(size, len(hidden)), len(part.weight), device=hidden.device)
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        yield rows, part.logits(hidden[rows], place[: len(hidden[rows])])


def _together(chosen: Tensor, peaks: Tensor, masses: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One law from its blocks, all (blocks, N).

    Everything is taken relative to the largest logit: log-probabilities near 0 would lose their digits otherwise.
    """
    peak = peaks.amax(0)
    factor = (peaks - peak).exp()
    mass = (factor * masses).sum(0)
    nll = mass.log() + (peak - chosen)
    if slopes is None:
        return nll, None
    below = factor * masses * (peak - peaks) - factor * slopes
    return nll, mass.log() + below.sum(0) / mass
