"""Forward hooks on a model's blocks that read or replace their outputs.

Layers are numbered 1 to depth; layer L is the output of block L, before the final norm. Shapes: B rows, T tokens,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from staytrue.errors import ModelError


def on_output(block: Any, visit: Callable[[Tensor], Tensor | None]) -> Any:
    """Call `visit` with every output (B, T, D) of a block; a returned tensor replaces it.

    Returns:
        The hook's handle, whose `remove()` ends it. A block with an output of another shape raises a `ModelError`.
    """

    def hook(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        if own.dim() != 3:
            raise ModelError(
                f"The blocks of this model ({type(module).__name__}) return activations of the shape "
                f"{tuple(own.shape)}, not (rows, tokens, width), so what they hold of a token cannot be read or "
                "steered. Leave out what names layers: ldifs, steer and persona vectors."
            )
        hidden = visit(own)
        return (hidden, *output[1:]) if hidden is not None and isinstance(output, tuple) else hidden

    return block.register_forward_hook(hook)


@contextmanager
def hooked(blocks: Iterable[Any], visit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `visit(layer, output)` for every block inside `with`; a returned tensor replaces the output (B, T, D)."""
    with ExitStack() as stack:
        for layer, block in enumerate(blocks, start=1):
            stack.callback(on_output(block, partial(visit, layer)).remove)
        yield


def real_layers(layers: Sequence[int], depth: int, label: str) -> list[int]:
    """Convert layer numbers to 1 to depth; negative ones are counted from the end.

    Args:
        layers: the numbers that a defense names.
        depth: the number of blocks.
        label: the defense's label, for the message.

    Raises:
        ModelError: the model has no such layer.
    """
    for layer in layers:
        if not (1 <= layer <= depth or -depth <= layer <= -1):
            raise ModelError(
                f"{label} asked for layer {layer}, but this model has {depth} (1 to {depth}). "
                "Use a negative number to count from the end; 0, the embeddings, is not a block."
            )
    return [layer if layer > 0 else depth + 1 + layer for layer in layers]
