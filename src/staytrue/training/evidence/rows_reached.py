"""`RowsReached` measures which rows of the batch a penalty's gradient reaches.

Rows do not mix in a forward pass. So the derivative of a penalty's value with respect to the activations that it reads
is 0 in every row that it does not count, whatever masks the code between the two uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MEASURED = 3  # micro-batches of a run, each at the cost of a part of a backward pass


class RowsReached:
    """The rows that one penalty's gradient reached, in a few micro-batches with rows of several sources.

    Args:
        module: the module whose output the penalty reads: the backbone, or the deepest block that it names.
        sources: returns the source of each row of the trainer's batch; None if unknown.
        on: the source that the penalty counts, or "all".
    """

    def __init__(self, module: Any, sources: Callable[[], Sequence[str] | None], on: str) -> None:
        self._sources, self._on = sources, on
        self._output: Tensor | None = None  # of the first call since the last penalty: the trainer's own
        self._left = _MEASURED
        self._reached: Counter[str] = Counter()
        self._present: Counter[str] = Counter()
        self._handle = module.register_forward_hook(self._leave)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def measure(self, value: Tensor) -> None:
        """Measure the gradient of a penalty's value (), if the batch has rows that it may not count."""
        output, self._output = self._output, None
        if output is None or not self._left or not value.requires_grad:
            return
        sources = self._sources()
        if sources is None or len(sources) != len(output) or not self._tells(set(sources)):
            return
        [gradient] = torch.autograd.grad(value, [output], retain_graph=True, allow_unused=True)
        reached = [False] * len(output) if gradient is None else (gradient != 0).flatten(1).any(1).tolist()
        self._left -= 1
        self._present.update(sources)
        self._reached.update(source for source, hit in zip(sources, reached, strict=True) if hit)

    def drain(self) -> dict[str, list[int]]:
        """Return by source how many rows were reached, of how many, since the last call; {} if nothing was measured."""
        counts = {source: [self._reached[source], count] for source, count in sorted(self._present.items())}
        self._reached, self._present = Counter(), Counter()
        return counts

    def _tells(self, sources: set[str]) -> bool:
        """Whether rows of these sources show which of them are counted."""
        return len(sources) > 1 if self._on == "all" else sources != {self._on}

    def end_micro_batch(self) -> None:
        """Begin another micro-batch."""
        self._output = None

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        if self._left and torch.is_grad_enabled() and self._output is None:
            hidden = output.last_hidden_state if hasattr(output, "last_hidden_state") else output
            self._output = hidden[0] if isinstance(hidden, tuple) else hidden
