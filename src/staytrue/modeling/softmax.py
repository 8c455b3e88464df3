"""A softmax of a tile of logits before it is normalised, and the KL divergence of two of them with its gradient.

Legend: n positions of a tile, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Softmax:
    """A softmax before normalising: dividing n sums later is cheaper than dividing n x V numbers now."""

    exp_logits: Tensor  # (n, V): exp(logit - max_logit)
    normaliser: Tensor  # (n,): their sums
    max_logit: Tensor  # (n,)

    @classmethod
    def of(cls, logits: Tensor, buffer: Tensor) -> Softmax:
        """Return the softmax of logits (n, V), with `exp_logits` written to `buffer`."""
        max_logit = logits.amax(-1, keepdim=True)
        exp_logits = torch.sub(logits, max_logit, out=buffer).exp_()
        return cls(exp_logits, exp_logits.sum(-1), max_logit.squeeze(-1))

    @property
    def log_normaliser(self) -> Tensor:
        """(n,) logsumexp of the logits."""
        return self.max_logit + self.normaliser.log()


def compare(ours: Tensor, theirs: Tensor, buffer: Tensor, *, forward: bool) -> tuple[Tensor, Tensor, Softmax]:
    """Return KL (n,), its gradient on the policy's logits (n, V) before normalising, and their softmax in `buffer`.

    Logits are compared before they are normalised: log-probabilities are near -log V, and the difference of two of
    them would lose the digits that a small divergence consists of. `theirs` is overwritten.
    """
    reference = Softmax.of(theirs, torch.empty_like(buffer) if forward else buffer)
    log_normaliser, normaliser = reference.log_normaliser, reference.normaliser
    softmax = Softmax.of(ours, buffer)  # overwrites the reference's, unless it has a buffer of its own
    gap, moved = torch.sub(ours, theirs, out=theirs), softmax.log_normaliser - log_normaliser
    if forward:
        value = moved - torch.linalg.vecdot(reference.exp_logits, gap) / normaliser
        ratio = (-softmax.normaliser / normaliser).unsqueeze(-1)
        return value, reference.exp_logits.mul_(ratio).add_(softmax.exp_logits), softmax
    mean = torch.linalg.vecdot(softmax.exp_logits, gap) / softmax.normaliser
    return mean - moved, gap.sub_(mean.unsqueeze(-1)).mul_(softmax.exp_logits), softmax
