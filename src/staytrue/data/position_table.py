"""Texts longer than a model's table of positions are refused; inside the model they end in an IndexError.

Models that learn a vector for each position have such a table (GPT-2, OPT, BioGPT). Those that compute positions, by
rotation or by distance, have none: they read any text, but few read well beyond the length that they were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staytrue.errors import ModelError

_MORE = 2  # rows that some tables have beside their positions


def table_length(model: Any) -> int | None:
    """The number of positions in a model's table; None where it computes positions."""
    config = getattr(model, "config", None)
    most = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if most is None:
        return None
    tokens = getattr(model, "get_input_embeddings", lambda: None)()
    of_tokens = set() if tokens is None else {*tokens.modules()}  # an adapter wraps them
    sizes = (getattr(module, "num_embeddings", None) for module in model.modules() if module not in of_tokens)
    return int(most) if any(size is not None and most <= size <= most + _MORE for size in sizes) else None


def refuse_longer(tokens: int, table: int | None, where: str, way_out: str) -> None:
    """Refuse a text that is longer than the table of positions.

    Args:
        tokens: of the text.
        table: see `table_length`; None checks nothing.
        where: names the text in the sentence, such as "Row 3 of train_dataset".
        way_out: a sentence.

    Raises:
        ModelError: the sentence has both lengths.
    """
    if table is not None and tokens > table:
        raise ModelError(f"{where} has {tokens:,} tokens, and the model has positions for {table:,}. {way_out}")


def beyond_positions(model: Any, lengths: Sequence[int]) -> list[str]:
    """One sentence about rows of so many tokens that are longer than the positions of the model's configuration.

    There is no sentence where positions are stretched beyond them (`rope_type` in the configuration).
    """
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    longer = sum(length > most for length in lengths) if most is not None else 0
    if not longer or _is_stretched(getattr(config, "rope_parameters", None) or {}):
        return []
    many = f"{longer} of {len(lengths)} rows are longer than the {most:,} positions of the model's configuration"
    return [f"{many}, beyond which it may read badly; train.max_length: {most} cuts rows there."]


def _is_stretched(rotation: Mapping[str, Any]) -> bool:
    """Whether rotary positions are scaled, in any kind of layer."""
    kinds = [one for one in rotation.values() if isinstance(one, Mapping)] or [rotation]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)
