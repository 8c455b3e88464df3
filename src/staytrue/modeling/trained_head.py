"""Log-likelihood and KL divergence where policy and reference have each its own LM head; never (N, V).

With full fine-tuning the head is trained itself; a reference that is another model may have another head.

Each position adds to the head's gradient (V, D) in proportion to the gradient of its own loss, which is not known
before the backward pass. So the backward pass projects each tile again: a divergence costs two projections more than
with a frozen head (`fused_loss`), and the gradient of the head itself. The trainer's own loss keeps its own head.

Legend: N positions, n of them in a tile, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.lm_head import Head
from staytrue.modeling.softmax import Softmax, compare


def head_losses(
    policy: Tensor,
    head: Head,
    *,
    tokens: Tensor | None = None,
    reference: Tensor | None = None,
    reference_head: Head | None = None,
    forward: bool = False,
) -> Tensor:
    """Compute one loss of each position; gradients flow through the hidden states, the head's weight and its bias.

    Args:
        policy: (N, D) final hidden states of the policy.
        head: its head.
        tokens: (N,) int64, the token that follows each position: the loss is its negative log-likelihood.
        reference: (N, D) final hidden states of the reference instead: the loss is the divergence from it.
        reference_head: the reference's head.
        forward: False for KL(policy || reference), True for KL(reference || policy).

    Returns:
        (N,) in nats. A divergence is exactly 0, and so is its gradient, where both have equal states and heads.
    """
    theirs = None if reference is None else reference.detach()
    tile = _Tile(head, tokens, theirs, reference_head, forward)
    loss: Tensor = _HeadLoss.apply(policy, head.weight, head.bias, tile)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True)
class _Tile:
    """What a tile is compared with: the tokens that follow, or the reference."""

    head: Head
    tokens: Tensor | None
    reference: Tensor | None
    reference_head: Head | None
    forward: bool

    def loss(self, policy: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses (n,) of a tile, the logits (n, V), and the gradient (n, V) of each loss on its logits."""
        logits = self.head.logits(policy[rows])
        if self.reference is not None:
            assert self.reference_head is not None
            theirs = self.reference_head.logits(self.reference[rows])
            loss, gradient, softmax = compare(logits, theirs, torch.empty_like(logits), forward=self.forward)
            return loss, logits, gradient / softmax.normaliser.unsqueeze(-1)
        assert self.tokens is not None
        softmax, index = Softmax.of(logits, torch.empty_like(logits)), self.tokens[rows].unsqueeze(-1)
        loss = softmax.log_normaliser - logits.gather(-1, index).squeeze(-1)
        gradient = softmax.exp_logits.div_(softmax.normaliser.unsqueeze(-1))
        return loss, logits, gradient.scatter_add_(-1, index, -torch.ones_like(index, dtype=gradient.dtype))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, policy: Tensor, weight: Tensor, bias: Tensor | None, tile: _Tile) -> Tensor:
        ctx.tile = tile
        ctx.save_for_backward(policy, weight, bias)
        losses = torch.zeros(len(policy), dtype=torch.float32, device=policy.device)
        with torch.autocast(policy.device.type, enabled=False):  # half precision would lose a small divergence
            for rows in tile.head.tiles(policy):
                losses[rows] = tile.loss(policy, rows)[0]
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        policy, weight, bias = ctx.saved_tensors
        tile: _Tile = ctx.tile
        trained, on_policy = ctx.needs_input_grad[1], torch.zeros_like(policy)
        on_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None
        on_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        with torch.autocast(policy.device.type, enabled=False):
            for rows in tile.head.tiles(policy):
                _, logits, gradient = tile.loss(policy, rows)
                gradient = tile.head.before_scaling(gradient * upstream[rows].float().unsqueeze(-1), logits)
                on_policy[rows] = (gradient.to(weight.dtype) @ weight).to(policy.dtype)
                if on_weight is not None:
                    on_weight.addmm_(gradient.t(), policy[rows].float())
                if on_bias is not None:
                    on_bias += gradient.sum(0)
        on_weight = None if on_weight is None else on_weight.to(weight.dtype)
        return on_policy, on_weight, None if on_bias is None else on_bias.to(bias.dtype), None
