"""Fused LM-head losses: log-likelihood and KL divergence with their gradients, in one pass of tiles; never (B, T, V).

Legend: N positions, n of them in a tile, D width, V vocabulary. Divergences and likelihoods are nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.lm_head import Head
from staytrue.modeling.softmax import Softmax, compare
from staytrue.modeling.trained_head import head_losses


@dataclass(frozen=True)
class TokenLosses:
    """Statistics of N positions under the LM head; all (N,), in nats. None where the caller did not ask for one."""

    log_probs: Tensor | None  # of the token that follows
    divergence: Tensor | None  # from the reference
    entropy: Tensor | None  # without gradient
    is_top1: Tensor | None  # bool: the token that follows is the likeliest


def token_losses(
    policy: Tensor,
    tokens: Tensor | None,
    head: Head,
    *,
    reference: Tensor | None = None,
    forward: bool = False,
    temperature: float = 1.0,
    metrics: bool = True,
) -> TokenLosses:
    """Project each position to logits once, and compute every requested statistic from the same tile.

    Args:
        policy: (N, D) final hidden states of the policy, the model in training; gradients flow through it.
        tokens: (N,) int64, the token that follows each position; None for the divergence alone.
        head: the frozen head.
        reference: (N, D) final hidden states of the reference, without gradient; None for no divergence.
        forward: False for KL(policy || reference), as the paper's code computes it (arXiv 2508.06249, KL term);
            True for KL(reference || policy).
        temperature: divides the logits for log-probabilities and entropy, not for the divergence.
        metrics: whether to compute entropy and top-1, which read every logit once more.

    Returns:
        The statistics. A divergence is exactly 0 where the two hidden states are equal.

    The gradients with respect to the hidden states are computed in the same pass and kept. With D x V multiplications
    for each projection, that is 2 DV FLOPs each for the policy's logits, the reference's logits and each of the
    two gradients: 8 DV. Memory is three tiles of logits.
    """
    frozen = None if reference is None else reference.detach()
    outputs: tuple[Tensor, ...] = _FusedLoss.apply(policy, frozen, tokens, head, forward, temperature, metrics)  # type: ignore[no-untyped-call]
    log_probs, divergence, entropy, is_top1 = outputs
    with_metrics = metrics and tokens is not None
    return TokenLosses(
        log_probs if tokens is not None else None,
        divergence if reference is not None else None,
        entropy if with_metrics else None,
        is_top1 if with_metrics else None,
    )


def divergence(
    policy: Tensor, reference: Tensor, head: Head, *, forward: bool = False, reference_head: Head | None = None
) -> Tensor:
    """Compute the Kullback-Leibler divergence between two next-token distributions at each position.

    Args:
        policy: (N, D) final hidden states of the policy; gradients flow through it.
        reference: (N, D) those of the reference, without gradient.
        head: the policy's head; gradients flow through its weight where it is trained.
        forward: see `token_losses`.
        reference_head: the reference's head, where it has another; None for the same.

    Returns:
        (N,) in nats.
    """
    if head.is_trained or reference_head is not None:
        return head_losses(policy, head, reference=reference, reference_head=reference_head or head, forward=forward)
    losses = token_losses(policy, None, head, reference=reference, forward=forward)
    assert losses.divergence is not None
    return losses.divergence


def nll(policy: Tensor, tokens: Tensor, head: Head) -> Tensor:
    """Compute the negative log-likelihood of the token that follows each position.

    Args:
        policy: (N, D) final hidden states of the policy; gradients flow through it.
        tokens: (N,) int64, the token that follows each position.
        head: the policy's head; gradients flow through its weight where it is trained.

    Returns:
        (N,) in nats.
    """
    if head.is_trained:
        return head_losses(policy, head, tokens=tokens)
    losses = token_losses(policy, tokens, head, metrics=False)
    assert losses.log_probs is not None
    return -losses.log_probs


class _FusedLoss(torch.autograd.Function):
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
        tiles = _TiledPass(head, forward, temperature, metrics)
        with torch.autocast(policy.device.type, enabled=False):  # half precision would lose a small divergence
            output = tiles.run(policy, reference, tokens, ctx.needs_input_grad[0])
        ctx.save_for_backward(output.log_prob_gradient, output.divergence_gradient)
        ctx.mark_non_differentiable(output.entropy, output.is_top1)
        return output.log_probs, output.divergence, output.entropy, output.is_top1

    @staticmethod
    def backward(ctx: Any, log_probs: Tensor | None, divergence: Tensor | None, *_: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: trl's activation_offloading gives each saved tensor back once only
        gradient, dtype = None, saved[0].dtype
        for rows, upstream in zip(saved, (log_probs, divergence), strict=True):
            if upstream is not None and rows.dim() == 2:  # in float32: rounding 1/n alike for all would be a bias
                scaled = rows * upstream.float().unsqueeze(-1)
                gradient = scaled if gradient is None else gradient + scaled
        return None if gradient is None else gradient.to(dtype), *[None] * 6


@dataclass
class _Output:
    log_probs: Tensor
    divergence: Tensor
    entropy: Tensor
    is_top1: Tensor
    log_prob_gradient: Tensor  # (N, D) with respect to the hidden states; (0,) where none is needed
    divergence_gradient: Tensor  # the same of the divergence


@dataclass(frozen=True)
class _TiledPass:
    """Computes the statistics of all positions in one pass, tile by tile."""

    head: Head
    forward: bool
    temperature: float
    metrics: bool

    def run(self, policy: Tensor, reference: Tensor | None, tokens: Tensor | None, with_gradient: bool) -> _Output:
        output = _empty(policy, with_gradient and tokens is not None, with_gradient and reference is not None)
        rows = min(next(self.head.tiles(policy), slice(0, 0)).stop, len(policy))
        vocabulary = self.head.weight.shape[0]
        plain = self.head.weight.dtype == policy.dtype == torch.float32  # then logits can be written to a buffer
        buffers = [policy.new_empty((rows * used, vocabulary), dtype=torch.float32) for used in (1, plain, plain)]
        for tile in self.head.tiles(policy):
            softmax_buffer, ours, theirs = (buffer[: len(policy[tile])] if len(buffer) else None for buffer in buffers)
            assert softmax_buffer is not None
            logits = self.head.logits(policy[tile], ours)
            if reference is None:
                softmax = Softmax.of(logits, softmax_buffer)
            else:
                reference_logits = self.head.logits(reference[tile], theirs)
                output.divergence[tile], gradient, softmax = compare(
                    logits, reference_logits, softmax_buffer, forward=self.forward
                )
                if output.divergence_gradient.dim() == 2:
                    output.divergence_gradient[tile] = self._to_hidden(gradient, logits, softmax, policy.dtype)
            if tokens is not None:
                gradient, softmax = self._log_probs(output, tile, tokens[tile], logits, softmax)
                if output.log_prob_gradient.dim() == 2:
                    output.log_prob_gradient[tile] = self._to_hidden(gradient, logits, softmax, policy.dtype)
        return output

    def _log_probs(
        self, output: _Output, tile: slice, tokens: Tensor, logits: Tensor, softmax: Softmax
    ) -> tuple[Tensor, Softmax]:
        """Write a tile's log-probabilities and metrics to `output`.

        Returns:
            The gradient of the log-probabilities with respect to the logits (n, V) before normalising, and the softmax
            that normalises it, whose `exp_logits` are overwritten.
        """
        if self.temperature != 1.0:
            logits = logits / self.temperature
            softmax = Softmax.of(logits, softmax.exp_logits)
        index = tokens.unsqueeze(-1)
        chosen = logits.gather(-1, index).squeeze(-1)
        output.log_probs[tile] = chosen - softmax.log_normaliser
        if self.metrics:
            expected = torch.linalg.vecdot(softmax.exp_logits, logits) / softmax.normaliser
            output.entropy[tile] = softmax.log_normaliser - expected
            # Half-precision logits often tie; trl then takes the first, as argmax does. Float32 logits rarely tie.
            half = self.head.weight.dtype != torch.float32
            output.is_top1[tile] = logits.argmax(-1) == tokens if half else chosen >= softmax.max_logit
        gradient = softmax.exp_logits.neg_().scatter_add_(-1, index, softmax.normaliser.unsqueeze(-1))
        return (gradient if self.temperature == 1.0 else gradient.div_(self.temperature)), softmax

    def _to_hidden(self, gradient: Tensor, logits: Tensor, softmax: Softmax, dtype: torch.dtype) -> Tensor:
        """Normalise a gradient with respect to the logits (n, V) and carry it back to the hidden states (n, D)."""
        return (self.head.pull_back(gradient, logits) / softmax.normaliser.unsqueeze(-1)).to(dtype)


def _empty(policy: Tensor, log_prob_gradient: bool, divergence_gradient: bool) -> _Output:
    def numbers(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(len(policy), dtype=dtype, device=policy.device)

    def rows(needed: bool) -> Tensor:
        return torch.empty_like(policy) if needed else policy.new_empty(0)

    return _Output(
        numbers(), numbers(), numbers(), numbers(torch.bool), rows(log_prob_gradient), rows(divergence_gradient)
    )
