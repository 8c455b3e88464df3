"""Forward hooks on a model's blocks that read or replace their outputs.

Layers are numbered 1 to depth; layer L is the output of block L, before the final norm. Shapes: B rows, T tokens,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor


def on_output(block: Any, visit: Callable[[Tensor], Tensor | None]) -> Any:
    """Call `visit` with every output (B, T, D) of a block; a returned tensor replaces it.

    Returns:
        The hook's handle, whose `remove()` ends it.
    """

    def hook(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        hidden = visit(output[0] if isinstance(output, tuple) else output)
        return (hidden, *output[1:]) if hidden is not None and isinstance(output, tuple) else hidden

    return block.register_forward_hook(hook)


@contextmanager
def hooked(blocks: Iterable[Any], visit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `visit(layer, output)` for every block inside `with`; a returned tensor replaces the output (B, T, D)."""
    with ExitStack() as stack:
        for layer, block in enumerate(blocks, start=1):
            stack.callback(on_output(block, partial(visit, layer)).remove)
        yield
