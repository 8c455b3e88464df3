"""The fused LM head of a training forward: one projection of each scored position, in place of trl's head.

trl's trainers call `model(..., labels=..., fused_lm_head=True)` and use log-probabilities instead of logits. Here that
call runs the backbone, evaluates the penalties on its hidden states, and projects each scored position once, for the
trainer's log-probability and for a divergence together; never a (B, T, V) tensor. trl's own head projects again in the
backward pass, once more for each divergence, and on a CPU every position.
Not done here: evaluation, models with router losses, shards of a sequence (`shift_labels`); they keep trl's head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from staytrue.modeling.fused_loss import TokenLosses, token_losses
from staytrue.modeling.lm_head import Head
from staytrue.step import Marks


class MicroBatch(Protocol):
    """A micro-batch whose penalties can be evaluated once its hidden states are computed."""

    marks: Marks

    def evaluate_penalties(self, head: HeadContext) -> None:
        """Evaluate the penalties; a divergence at the scored positions may go through `head`."""
        ...


class HeadContext:
    """Computes what a divergence and the trainer's loss share, once in a micro-batch.

    Args:
        labels: (B, T), what the trainer's call scores; -100 is not scored.
        marks: of the micro-batch.
        head: the frozen head.
        temperature: of the trainer's log-probabilities.
    """

    def __init__(self, labels: Tensor, marks: Marks, head: Head, temperature: float) -> None:
        following = labels[:, 1:]
        self.mask = following != -100  # (B, T - 1)
        self._tokens = following[self.mask]
        self._marks, self._head, self._temperature = marks, head, temperature
        self._losses: TokenLosses | None = None

    def takes(self, mask: Tensor) -> bool:
        """Return whether a divergence at these positions (B, T) can share the trainer's own projection."""
        if self._losses is not None or not torch.equal(mask, self._marks.scored):
            return False
        return torch.equal(mask[:, :-1], self.mask)

    def divergence(self, policy: Tensor, reference: Tensor, forward: bool) -> Tensor:
        """Compute the divergence (N,) at the scored positions; log-probabilities of the same projection are kept."""
        self._losses = self._compute(policy, reference=reference, forward=forward)
        assert self._losses.divergence is not None
        return self._losses.divergence

    def losses(self, hidden: Tensor) -> TokenLosses:
        """Compute the trainer's statistics of its scored positions, from hidden states (B, T, D)."""
        return self._losses or self._compute(hidden[:, :-1][self.mask])

    def _compute(self, policy: Tensor, **options: Any) -> TokenLosses:
        return token_losses(policy, self._tokens, self._head, temperature=self._temperature, **options)


class FusedLMHead:
    """Replaces trl's head in the patched forward of a causal language model.

    Args:
        causal: the transformers model, after trl has patched its forward.
        backbone: its backbone, the module that the forward hooks watch.
        head: its LM head, which must be frozen.
        temperature: of the trainer's log-probabilities.
        output: the class of the output of trl's forward.
    """

    def __init__(self, causal: Any, backbone: Any, head: Head, temperature: float, output: Any) -> None:
        self._backbone, self._head, self._temperature, self._output = backbone, head, temperature, output
        self._micro_batch: MicroBatch | None = None
        patched_by_trl = causal.forward

        @functools.wraps(patched_by_trl)
        def forward(*args: Any, **kwargs: Any) -> Any:
            fused = kwargs.get("fused_lm_head") and kwargs.get("labels") is not None
            training = self._micro_batch is not None and torch.is_grad_enabled()
            ours = fused and training and kwargs.get("shift_labels") is None
            return self._forward(*args, **kwargs) if ours else patched_by_trl(*args, **kwargs)

        causal.forward = forward

    @contextmanager
    def during(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Route the forward of one micro-batch through this head, which evaluates the micro-batch's penalties."""
        self._micro_batch = micro_batch
        try:
            yield
        finally:
            self._micro_batch = None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        micro_batch = self._micro_batch
        assert micro_batch is not None
        labels, items = kwargs.pop("labels"), kwargs.pop("num_items_in_batch", None)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("fused_lm_head", "shift_labels")}
        hidden = self._backbone(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        context = HeadContext(labels, micro_batch.marks, self._head, self._temperature)
        micro_batch.evaluate_penalties(context)
        losses, mask = context.losses(hidden), context.mask
        assert losses.log_probs is not None

        def spread(values: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
            empty = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            return empty if values is None else empty.masked_scatter(mask, values)

        return self._output(
            loss=-losses.log_probs.sum() / (mask.sum().clamp(min=1) if items is None else items),
            log_probs=spread(losses.log_probs),
            entropy=spread(losses.entropy),
            is_top1=spread(losses.is_top1, torch.bool),
            label_mask=mask,
        )
