"""The language-model head in tiles: divergences and likelihoods without ever holding (B, T, V).

Legend: N positions, D width, V vocabulary; divergences and likelihoods in nats per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A tile of about two million logits stays in a CPU's cache, and one sixteen times larger keeps a GPU busy.
_LOGITS_PER_TILE = {"cpu": 2**21}
_LOGITS_PER_TILE_ELSEWHERE = 2**25
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class Head:
    """From a final hidden state (N, D) to logits (N, V): `softcap * tanh(scale * (h W^T + b) / softcap)`.

    `weight` is (V, D), `bias` (V,) or None. A scale of 1 and no soft cap is the plain head of most models. The head is
    frozen and shared by the trained model and its reference; a trained or adapted head is refused elsewhere.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) in float32 for hidden states (N, D); the product runs in the head's own precision."""
        raw = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        if self.scale != 1.0:
            raw = raw * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Carry a gradient on the logits (N, V) back to the hidden states (N, D)."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        if self.scale != 1.0:
            gradient = gradient * self.scale
        return gradient.to(self.weight.dtype) @ self.weight

    def tiles(self, hidden: Tensor) -> Iterator[slice]:
        """Slices of (N, D) such that no tile's logits exceed a fixed size."""
        budget = _LOGITS_PER_TILE.get(hidden.device.type, _LOGITS_PER_TILE_ELSEWHERE)
        rows = max(_FEWEST_ROWS, budget // self.weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            yield slice(start, start + rows)


def divergence(policy: Tensor, reference: Tensor, head: Head, *, forward: bool = False) -> Tensor:
    """Kullback-Leibler divergence between next-token laws, per position.

    Args:
        policy: (N, D) final hidden states of the model in training; gradients flow through it.
        reference: (N, D) final hidden states of the reference; no gradient.
        head: the frozen head both share.
        forward: False for KL(trained || reference), as the paper's code has it (arXiv 2508.06249, KL term);
            True for KL(reference || trained).

    Returns:
        (N,) nats per token, exactly 0 where the two hidden states are equal. The gradient is computed in the same
        tiles as the value: 2 VD FLOPs each for the two projections and the pull-back, memory one tile.
    """
    per_token: Tensor = _Divergence.apply(policy, reference.detach(), head, forward)  # type: ignore[no-untyped-call]
    return per_token


def nll(policy: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """Negative log-likelihood of the tokens that follow, per position.

    Args:
        policy: (N, D) final hidden states of the model in training; gradients flow through it.
        tokens: (N,) int64, the token that follows each position.
        head: the frozen head.

    Returns:
        (N,) nats per token. The gradient is computed in the same tiles as the value: 2 VD FLOPs for the projection and
        as many for the pull-back, memory one tile.
    """
    per_token: Tensor = _NLL.apply(policy, tokens, head)  # type: ignore[no-untyped-call]
    return per_token


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, policy: Tensor, reference: Tensor, head: Head, forward: bool) -> Tensor:
        values = torch.empty(policy.shape[0], dtype=torch.float32, device=policy.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(policy) if wanted else policy.new_empty(0)
        for tile in head.tiles(policy):
            logits = head.logits(policy[tile])
            values[tile], slope = _value_and_slope(logits, head.logits(reference[tile]), forward)
            if wanted:
                gradient[tile] = head.pull_back(slope, logits).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(-1).to(gradient.dtype), None, None, None


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, policy: Tensor, tokens: Tensor, head: Head) -> Tensor:
        values = torch.empty(policy.shape[0], dtype=torch.float32, device=policy.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(policy) if wanted else policy.new_empty(0)
        for tile in head.tiles(policy):
            logits, said = head.logits(policy[tile]), tokens[tile].unsqueeze(-1)
            values[tile] = torch.logsumexp(logits, -1) - logits.gather(-1, said).squeeze(-1)
            if wanted:
                slope = torch.softmax(logits, -1)
                slope.scatter_add_(-1, said, slope.new_full(said.shape, -1.0))
                gradient[tile] = head.pull_back(slope, logits).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(-1).to(gradient.dtype), None, None


def _value_and_slope(ours: Tensor, theirs: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
    """The divergence (n,) and its slope on the trained model's logits (n, V), from both models' logits (n, V).

    Logits are compared before they are normalised: log-probabilities are near -log V, and the difference of two of
    them would lose the digits that a small divergence consists of.
    """
    p, gap = torch.softmax(ours, -1), ours - theirs
    moved = torch.logsumexp(ours, -1) - torch.logsumexp(theirs, -1)
    if forward:
        q = torch.softmax(theirs, -1)
        return moved - (q * gap).sum(-1), p - q
    mean = (p * gap).sum(-1)
    return mean - moved, p * (gap - mean.unsqueeze(-1))
