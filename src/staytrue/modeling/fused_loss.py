"""What a head says of positions, in one pass of tiles: likelihood, divergence, and both gradients; never (B, T, V).

Legend: N positions, n of them in a tile, D width, V vocabulary; divergences and likelihoods in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.lm_head import Head


@dataclass(frozen=True)
class Reading:
    """What one pass over the head says of N positions; all (N,), nats. None is what was not asked for."""

    log_probs: Tensor | None  # of the token that follows
    divergence: Tensor | None  # from the reference
    entropy: Tensor | None  # no gradient
    is_top1: Tensor | None  # bool: the token that follows is the likeliest


def read(
    policy: Tensor,
    tokens: Tensor | None,
    head: Head,
    *,
    reference: Tensor | None = None,
    forward: bool = False,
    temperature: float = 1.0,
    metrics: bool = True,
) -> Reading:
    """Project each position once, and take from the same tile of logits all that is asked.

    Args:
        policy: (N, D) final hidden states of the model in training; gradients flow through it.
        tokens: (N,) int64, the token that follows each position; None when only the divergence is wanted.
        head: the frozen head.
        reference: (N, D) final hidden states of the reference, no gradient; None when no divergence is wanted.
        forward: False for KL(trained || reference), as the paper's code has it (arXiv 2508.06249, KL term);
            True for KL(reference || trained).
        temperature: divides the logits for log-probabilities and entropy, not for the divergence.
        metrics: whether to compute entropy and top-1 accuracy too, one more pass over the tile's logits.

    Returns:
        Values and, kept for the backward pass, their gradients on the hidden states: with D x V multiplications a
        projection, 2 DV FLOPs each for the student's logits, the reference's, and every gradient row: 8 DV for
        likelihood and divergence together. Memory is three tiles of logits.
        A divergence is exactly 0 where the two hidden states are equal.
    """
    given = None if reference is None else reference.detach()
    outputs: tuple[Tensor, ...] = _Read.apply(policy, given, tokens, head, forward, temperature, metrics)  # type: ignore[no-untyped-call]
    log_probs, divergence, entropy, is_top1 = outputs
    seen = metrics and tokens is not None
    return Reading(
        log_probs if tokens is not None else None,
        divergence if reference is not None else None,
        entropy if seen else None,
        is_top1 if seen else None,
    )


def divergence(policy: Tensor, reference: Tensor, head: Head, *, forward: bool = False) -> Tensor:
    """(N,) Kullback-Leibler divergence between next-token distributions, in nats; see `read`."""
    found = read(policy, None, head, reference=reference, forward=forward).divergence
    assert found is not None
    return found


def nll(policy: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """(N,) negative log-likelihood of the tokens that follow, in nats; see `read`."""
    found = read(policy, tokens, head, metrics=False).log_probs
    assert found is not None
    return -found


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        policy: Tensor,
        reference: Tensor | None,
        tokens: Tensor | None,
        head: Head,
        forward: bool,
        temperature: float,
        metrics: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        tiled = _Tiled(head, forward, temperature, metrics)
        with torch.autocast(policy.device.type, enabled=False):  # a small divergence is all last digits
            found = tiled.run(policy, reference, tokens, ctx.needs_input_grad[0])
        ctx.save_for_backward(found.teaching, found.holding)
        ctx.mark_non_differentiable(found.entropy, found.is_top1)
        return found.log_probs, found.divergence, found.entropy, found.is_top1

    @staticmethod
    def backward(ctx: Any, log_probs: Tensor | None, divergence: Tensor | None, *_: Any) -> tuple[Any, ...]:
        teaching, holding = ctx.saved_tensors
        gradient, dtype = None, teaching.dtype
        for rows, upstream in ((teaching, log_probs), (holding, divergence)):
            if upstream is not None and rows.dim() == 2:  # in float32: the same rounding of 1/n for all would be a bias
                scaled = rows * upstream.float().unsqueeze(-1)
                gradient = scaled if gradient is None else gradient + scaled
        return None if gradient is None else gradient.to(dtype), *[None] * 6


@dataclass
class _Found:
    log_probs: Tensor
    divergence: Tensor
    entropy: Tensor
    is_top1: Tensor
    teaching: Tensor  # (N, D) gradient of the log-probabilities; (0,) where there is none
    holding: Tensor  # (N, D) gradient of the divergence; (0,) where there is none


@dataclass(frozen=True)
class _Tiled:
    """One pass over the head, tile by tile."""

    head: Head
    forward: bool
    temperature: float
    metrics: bool  # whether entropy and top-1 are wanted

    def run(self, policy: Tensor, reference: Tensor | None, tokens: Tensor | None, wanted: bool) -> _Found:
        found = _empty(policy, wanted and tokens is not None, wanted and reference is not None)
        rows = min(next(self.head.tiles(policy), slice(0, 0)).stop, len(policy))
        words = self.head.weight.shape[0]
        plain = self.head.weight.dtype == policy.dtype == torch.float32  # logits are made in a place that is there
        places = [policy.new_empty((rows * used, words), dtype=torch.float32) for used in (1, plain, plain)]
        for tile in self.head.tiles(policy):
            weights, ours, theirs = (place[: len(policy[tile])] if len(place) else None for place in places)
            ours = self.head.logits(policy[tile], ours)
            assert weights is not None
            if reference is not None:
                theirs = self.head.logits(reference[tile], theirs)
                found.divergence[tile], gradient, distribution = self._compare(ours, theirs, weights)
                if found.holding.dim() == 2:
                    found.holding[tile] = self._pulled_back(gradient, ours, distribution, policy.dtype)
            else:
                distribution = _Softmax.of(ours, weights)
            if tokens is not None:
                rise, distribution = self._read_tokens(found, tile, tokens[tile], ours, distribution)
                if found.teaching.dim() == 2:
                    found.teaching[tile] = self._pulled_back(rise, ours, distribution, policy.dtype)
        return found

    def _compare(self, ours: Tensor, theirs: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor, _Softmax]:
        """Compare two next-token distributions given by their logits (n, V).

        Logits are compared before they are normalised: log-probabilities are near -log V, and the difference of two of
        them would lose the digits that a small divergence consists of. `theirs` is overwritten.

        Returns:
            The divergence (n,), its gradient on our logits before dividing by the softmax normaliser, and our softmax,
            whose weights are written to `buffer`.
        """
        other = _Softmax.of(theirs, torch.empty_like(buffer) if self.forward else buffer)
        total, normaliser = other.total, other.normaliser
        distribution = _Softmax.of(ours, buffer)
        gap, moved = torch.sub(ours, theirs, out=theirs), distribution.total - total
        if self.forward:
            value = moved - torch.linalg.vecdot(other.weights, gap) / normaliser
            return (
                value,
                other.weights.mul_((-distribution.normaliser / normaliser).unsqueeze(-1)).add_(distribution.weights),
                distribution,
            )
        mean = torch.linalg.vecdot(distribution.weights, gap) / distribution.normaliser
        return mean - moved, gap.sub_(mean.unsqueeze(-1)).mul_(distribution.weights), distribution

    def _read_tokens(
        self, found: _Found, tile: slice, tokens: Tensor, logits: Tensor, distribution: _Softmax
    ) -> tuple[Tensor, _Softmax]:
        """Store a tile's log-probabilities, and its entropy and top-1 accuracy if wanted.

        Returns:
            The gradient (n, V) of the log-probabilities on the logits, before dividing by the softmax normaliser, and
            the softmax that it belongs to. That softmax's weights are overwritten.
        """
        if self.temperature != 1.0:
            logits = logits / self.temperature
            distribution = _Softmax.of(logits, distribution.weights)
        said = tokens.unsqueeze(-1)
        chosen = logits.gather(-1, said).squeeze(-1)
        found.log_probs[tile] = chosen - distribution.total
        if self.metrics:
            found.entropy[tile] = (
                distribution.total - torch.linalg.vecdot(distribution.weights, logits) / distribution.normaliser
            )
            # Numbers in half precision tie often, and of a tie the first is meant, as trl has it; float32's hardly do.
            half = self.head.weight.dtype != torch.float32
            found.is_top1[tile] = logits.argmax(-1) == tokens if half else chosen >= distribution.max_logit
        rise = distribution.weights.neg_().scatter_add_(-1, said, distribution.normaliser.unsqueeze(-1))
        return (rise if self.temperature == 1.0 else rise.div_(self.temperature)), distribution

    def _pulled_back(self, gradient: Tensor, logits: Tensor, distribution: _Softmax, dtype: torch.dtype) -> Tensor:
        return (self.head.pull_back(gradient, logits) / distribution.normaliser.unsqueeze(-1)).to(dtype)


@dataclass(frozen=True)
class _Softmax:
    """A next-token distribution before it is normalised: to divide n numbers later is cheaper than n x V now."""

    weights: Tensor  # (n, V), the largest of each row is 1
    normaliser: Tensor  # (n,), their sums
    max_logit: Tensor  # (n,), the largest logit

    @classmethod
    def of(cls, logits: Tensor, buffer: Tensor) -> _Softmax:
        """The distribution of logits (n, V), its weights in `buffer`."""
        max_logit = logits.amax(-1, keepdim=True)
        weights = torch.sub(logits, max_logit, out=buffer).exp_()
        return cls(weights, weights.sum(-1), max_logit.squeeze(-1))

    @property
    def total(self) -> Tensor:
        """(n,) the logarithm of the sum of the exponentials of the logits."""
        return self.max_logit + self.normaliser.log()


def _empty(policy: Tensor, teaching: bool, holding: bool) -> _Found:
    def numbers(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(len(policy), dtype=dtype, device=policy.device)

    def rows(wanted: bool) -> Tensor:
        return torch.empty_like(policy) if wanted else policy.new_empty(0)

    return _Found(numbers(), numbers(), numbers(), numbers(torch.bool), rows(teaching), rows(holding))
