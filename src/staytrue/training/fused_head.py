"""The head of a training forward: one pass of ours in the place of trl's, at trl's own seam.

trl's trainers call `model(..., labels=..., fused_lm_head=True)` and read log-probabilities instead of logits. Here that
call runs the backbone, lets the defenses ask for what they need of its hidden states, and then projects each scored
position once, for the trainer and for a divergence together; scored positions only, never a (B, T, V) tensor. trl's
own head projects again in the backward pass, once more for each divergence, and on a CPU every position.
Not done here: evaluation, models with router losses, shards of a sequence (`shift_labels`); they take trl's head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.fused_loss import Reading, read
from staytrue.modeling.lm_head import Head
from staytrue.step import Marks


class HeadContext:
    """One micro-batch under the head: the penalties that its defenses ask for, and what was read on the way.

    Attributes:
        penalty: what `ask` gave.
        asked: whether the head came by at all.
    """

    def __init__(self, marks: Marks, head: Head, temperature: float) -> None:
        self._marks, self._head, self._temperature = marks, head, temperature
        self._reading: Reading | None = None
        self.labels: Tensor | None = None  # (B, T): what the trainer's call will score
        self.penalty: Tensor | None = None
        self.asked = False

    def takes(self, mask: Tensor) -> bool:
        """Whether a divergence at these positions (B, T) can share the trainer's own projection."""
        if self._reading is not None or self.labels is None or not torch.equal(mask, self._marks.scored):
            return False
        return torch.equal(mask[:, :-1], self.labels[:, 1:] != -100)

    def divergence(self, policy: Tensor, reference: Tensor, forward: bool) -> Tensor:
        """(N,) at the scored positions; what the trainer will want of them is kept."""
        assert self.labels is not None
        following = self.labels[:, 1:]
        self._reading = found = read(
            policy,
            following[following != -100],
            self._head,
            reference=reference,
            forward=forward,
            temperature=self._temperature,
        )
        assert found.divergence is not None
        return found.divergence

    def reading(self, hidden: Tensor) -> Reading:
        """What the trainer wants of its scored positions, of hidden states (B, T, D)."""
        if self._reading is not None:
            return self._reading
        assert self.labels is not None
        following = self.labels[:, 1:]
        mask = following != -100
        return read(hidden[:, :-1][mask], following[mask], self._head, temperature=self._temperature)


class FusedLMHead:
    """Stands in a causal language model's patched forward.

    Args:
        causal: the transformers model, after trl has given it a fused head.
        backbone: its backbone, as `watch` sees it.
        head: its head, which must be frozen.
        temperature: of the trainer's log-probabilities.
        output: the class of what trl's forward returns.
    """

    def __init__(self, causal: Any, backbone: Any, head: Head, temperature: float, output: Any) -> None:
        self._backbone, self._head, self._temperature, self._output = backbone, head, temperature, output
        self._now: tuple[HeadContext, Callable[[HeadContext], Tensor | None]] | None = None
        theirs = causal.forward

        @functools.wraps(theirs)
        def forward(*args: Any, **kwargs: Any) -> Any:
            wanted = kwargs.get("fused_lm_head") and kwargs.get("labels") is not None
            ours = self._now is not None and wanted and torch.is_grad_enabled() and kwargs.get("shift_labels") is None
            return self._forward(*args, **kwargs) if ours else theirs(*args, **kwargs)

        causal.forward = forward

    @contextmanager
    def during(self, marks: Marks, ask: Callable[[HeadContext], Tensor | None]) -> Iterator[HeadContext]:
        """One micro-batch's loss: when its hidden states are there, `ask` for the penalties."""
        head_context = HeadContext(marks, self._head, self._temperature)
        self._now = head_context, ask
        try:
            yield head_context
        finally:
            self._now = None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self._now is not None
        head_context, ask = self._now
        labels, items = kwargs.pop("labels"), kwargs.pop("num_items_in_batch", None)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("fused_lm_head", "shift_labels")}
        hidden = self._backbone(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        head_context.labels = labels
        head_context.penalty, head_context.asked = ask(head_context), True
        mask = labels[:, 1:] != -100
        found = head_context.reading(hidden)
        assert found.log_probs is not None

        def spread(values: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
            empty = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            return empty if values is None else empty.masked_scatter(mask, values)

        return self._output(
            loss=-found.log_probs.sum() / (mask.sum().clamp(min=1) if items is None else items),
            log_probs=spread(found.log_probs),
            entropy=spread(found.entropy),
            is_top1=spread(found.is_top1, torch.bool),
            label_mask=mask,
        )
