"""`SuggestedMemory` has the batch, and 4-bit weights or recomputed activations, that fit into this machine's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from staytrue.modeling import quantized
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs import training_cost
from staytrue.runs.commented_recipe import RecipeKey
from staytrue.runs.training_cost import Memory

_OF_MEMORY = 0.8  # of what there is
_PACKED = "4bit"


@dataclass(frozen=True)
class SuggestedMemory:
    """The estimated memory of a batch of one row, and what there is.

    Attributes:
        one: of training with one row, the longest, in a batch.
        available: bytes of this machine or its GPU.
        packed: of the same with 4-bit weights, where `one` does not fit and this does; None elsewhere.
        part: the longest row's tokens over those of the longest text, which a row beside the batch may be.
    """

    one: Memory
    available: int
    packed: Memory | None = None
    part: float = 1.0

    @classmethod
    def of(
        cls, skeleton: Skeleton, measure: Callable[[Skeleton], Memory], kind: str, part: float = 1.0
    ) -> SuggestedMemory:
        """Estimate the memory of one row, and where it is too much, with 4-bit weights.

        Args:
            skeleton: the model with its adapter.
            measure: estimates the memory of one row as long as the longest text.
            kind: of device that trains.
            part: the attribute.
        """
        alone = cls(measure(skeleton), training_cost.available(kind), part=part)
        packs_already = hasattr(skeleton.model.config, "quantization_config")
        if alone._fits(alone.one) or alone.one.activations is None or packs_already or kind == "mps":
            return alone
        packed = measure(replace(skeleton, quantize=_PACKED))
        return replace(alone, packed=packed) if alone._fits(packed) else alone

    def _fits(self, memory: Memory) -> bool:
        return memory.total <= _OF_MEMORY * self.available

    def quantize(self) -> Iterator[RecipeKey]:
        """The key `quantize`, where only 4-bit weights fit and bitsandbytes is installed."""
        if self.packed is not None and quantized.is_installed():
            yield RecipeKey(
                "quantize",
                _PACKED,
                f"{self._too_much()} With 4-bit weights it is {_gb(self.packed.total)} (QLoRA); a step takes longer.",
            )

    def batch(self, most: int) -> tuple[int, str, bool]:
        """The largest batch that memory is estimated to hold, the reason, and whether to recompute activations."""
        one = self.packed if self.packed is not None and quantized.is_installed() else self.one
        if one.activations is None:
            return 1, "The memory of this model's activations cannot be estimated; raise it while memory lasts.", False
        for batch in (n for n in (16, 8, 4, 2, 1) if n <= most):
            needed = replace(one, activations=batch * one.activations).total
            if needed <= _OF_MEMORY * self.available:
                longest = f"If all {batch} rows were as long as the longest, training" if batch > 1 else "Training"
                rows = replace(one, activations=round(self.part * batch * one.activations)).total  # as `check` counts
                return batch, f"{longest} would take about {_gb(rows)} {self._whole()}.", False
        if self.packed is None:
            return 1, f"{self._too_much()} Take a smaller model or more memory.", True
        return 1, f"{self._too_much()} {self._unpacked()}", True

    def _whole(self) -> str:
        return f"of this machine's {_gb(self.available)}"

    def _too_much(self) -> str:
        return f"Even one row is estimated to take {_gb(self.one.total)} {self._whole()}."

    def _unpacked(self) -> str:
        assert self.packed is not None
        return (
            f"With 4-bit weights it would be {_gb(self.packed.total)}: run `pip install 'staytrue[quantize]'`, and "
            f"write `quantize: {_PACKED}`."
        )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
