"""Token ids that a model has no embedding for are refused; inside the model they end in an IndexError.

On a GPU such an id ends the process in an assertion that names no place, and every later call fails too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from staytrue.errors import ModelError


def embedding_count(model: Any) -> int | None:
    """The number of token ids that a model has embeddings for; None where that is not known."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    return len(weight) if weight is not None and len(weight) else None  # 0: held in parts by other processes


def refuse_unknown_tokens(ids: Iterable[int], count: int | None, where: str) -> None:
    """Refuse token ids outside of the embeddings.

    Args:
        ids: of the text.
        count: how many ids the model has embeddings for; None checks nothing.
        where: names the text in the sentence, such as "row 3 of train_dataset".

    Raises:
        ModelError: the id, where it is, and what to do.
    """
    if count is None:
        return
    unknown = next((token for token in ids if not 0 <= token < count), None)
    if unknown is not None:
        raise ModelError(
            f"{where} has the token id {unknown}, and the model has embeddings for the ids 0 to {count - 1}. Use the "
            "model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) before an adapter is added."
        )
