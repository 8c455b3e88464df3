"""What a guarded trainer makes of its arguments: its guard, and its datasets after the data defenses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.defense import Defense
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched
from staytrue.training.guard import Guard
from staytrue.training.readable_rows import readable
from staytrue.training.trl_datasets import TRLRows, tokenizer_of

_TRAINERS_SEED = 42  # transformers' own, for a trainer without args


def guard_of(
    defenses: Sequence[Defense] | Guard, config: Any, cache: Path | str | None, reference: Any, *, prompts: bool
) -> Guard:
    """Return the guard of these defenses, or the one that was passed, which has its own cache and reference.

    Args:
        defenses: in listed order, or their Guard.
        config: the trainer's `args`, whose seed is taken; None for the default seed of transformers.
        cache: a folder for the reference's states; None for no cache.
        reference: which model is the reference, see `modeling.choose_reference`.
        prompts: whether rows are prompts to answer (GRPO).

    Raises:
        RecipeError: `cache` or `reference` beside a Guard.
        RequestError: as for `Guard`.
    """
    if not isinstance(defenses, Guard):
        seed = getattr(config, "seed", _TRAINERS_SEED)
        return Guard(defenses, seed, cache, sampled=prompts, reference=reference)
    for name, value in {"reference_cache": cache, "reference": reference}.items():
        if value is not None:
            raise RecipeError(f"A Guard has its own {name}; write Guard(..., {name}=...).")
    return defenses


def edit_datasets(
    arguments: Mapping[str, Any], guard: Guard | None, untouched: Untouched, *, prompts: bool
) -> dict[str, Any]:
    """Let the data defenses edit the datasets among a trainer's arguments; return them in a form that it reads.

    Args:
        arguments: of the trainer, by name.
        guard: edits the training rows; None if its owner has let it edit them already.
        untouched: the model before training; it is given the tokenizer if rows are edited.
        prompts: whether rows are prompts to answer (GRPO).

    Raises:
        RecipeError: rows that the trainer or a data defense cannot read.
    """
    if guard is None or not guard.pulls("curate"):
        return readable(arguments, prompts=prompts, curated=False)
    datasets = readable(arguments, prompts=prompts, curated=True)
    untouched.tokenizer = tokenizer_of(arguments)
    # With skip_prepare_dataset no dataset is checked, so the argument itself is read.
    rows = TRLRows(datasets.get("train_dataset", arguments.get("train_dataset")), prompts)
    datasets["train_dataset"] = rows.with_examples(guard.curate(rows.examples, rows.base(untouched)))
    return datasets
