"""`write_merged` writes a model with its adapter merged into its weights, as an ordinary folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from staytrue.errors import ModelError
from staytrue.modeling.chat_tokenizer import own_tokenizer
from staytrue.modeling.loading import with_unpacked_weights
from staytrue.modeling.model_source import Source
from staytrue.modeling.saving import save
from staytrue.utils.files import refuse_existing
from staytrue.utils.scratch import scratch_beside


def write_merged(source: Source, adapter: Path, out: Path) -> None:
    """Write the merged model in the precision of the model's own files, with its tokenizer and chat template.

    Merging rounds each changed weight once to that precision, so answers differ slightly from those of the adapter.
    Quantised weights are unpacked, since the adapter was trained on them and not on those of the model's own files.

    Args:
        source: the model that the adapter was trained on.
        adapter: folder of the adapter.
        out: the folder to write; it is whole or absent, since it is written beside and renamed.

    Raises:
        RequestError: `out` exists, or cannot be created.
        ModelError: the model or adapter cannot be loaded, or merged weights are not finite.
        StaytrueError: the merged model cannot be written.
    """
    refuse_existing(out)
    model = with_unpacked_weights(source, adapter, dtype="auto")
    _untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"The adapter {adapter} cannot be merged: {str(error).splitlines()[0]}") from None
    tokenizer = own_tokenizer(source)
    with scratch_beside(out) as scratch:
        ready = scratch / "model"
        save(merged, tokenizer, ready)
        ready.rename(out)


def _untie(model: Any) -> None:
    """Give the head a weight of its own, if it shares the embedding's and an adapter changes one of the two alone."""
    causal = model.get_base_model()
    layers = [causal.get_input_embeddings(), causal.get_output_embeddings()]
    embedding, head = (getattr(layer, "base_layer", layer) for layer in layers)
    changed = any(hasattr(layer, "base_layer") for layer in layers)
    if changed and head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        causal.config.tie_word_embeddings = False
