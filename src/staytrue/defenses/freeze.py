"""Freeze the layers that carry safety.

What: the named blocks are not trained, neither their adapter nor, with full fine-tuning, their own weights, so they
stay as they were.
Cost: none; a little less to train.
Paper: Li et al. 2024 (arXiv 2408.17003), safely partial-parameter fine-tuning (SPPFT): a few contiguous layers in the
middle of an aligned model tell malicious queries from normal ones, and their gradient is set to zero. The paper locates
them for each model.
Differs: with LoRA a block's own weights are frozen anyway; here its adapter is too.
Not done here: finding the layers (the paper compares hidden states of normal and malicious queries, then scales layers
and counts refusals), freezing single heads or neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

from staytrue.defense import Defense


@dataclass(frozen=True)
class Freeze(Defense):
    """A defense that leaves some blocks untrained.

    Attributes:
        blocks: which layers, 1 to depth, negative from the end; none means the second quarter of the model.
    """

    blocks: tuple[int, ...] = ()

    def freeze(self, depth: int) -> tuple[int, ...]:
        """Return the given blocks, or those from a quarter to half of the depth."""
        return self.blocks or tuple(range(1 + depth // 4, max(depth // 2, 1 + depth // 4) + 1))
