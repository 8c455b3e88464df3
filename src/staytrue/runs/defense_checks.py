"""`check_defenses`: checks defenses against a model without weights, and reads their rows as training does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from staytrue.config.refused_settings import refuse_unguarded
from staytrue.data.examples import Example, Message
from staytrue.data.position_table import table_length
from staytrue.data.vocabulary import embedding_count
from staytrue.modeling.base_model import Untouched
from staytrue.runs.trainer_setup import left_out
from staytrue.training.auxiliary_batches import encode_rows
from staytrue.training.step_count import task_rows_ahead


class Unsampled(Untouched):
    """The untouched model as far as it is known without weights: it gives every prompt the same short answer."""

    def answers(
        self, prompts: Sequence[Example], seed: int, max_new_tokens: int = 256, only: Sequence[int] | None = None
    ) -> list[Example]:
        """Return the prompts that would be answered, with a stand-in for each answer."""
        chosen = [prompts[i] for i in (range(len(prompts)) if only is None else only)]
        return [replace(row, messages=(*row.messages, Message("assistant", "A."))) for row in chosen]


def check_defenses(build: Any, model: Any, arguments: Any) -> list[str]:
    """Refuse what training would refuse of its defenses, but for what depends on weights.

    Args:
        build: the run before training (see `trainer_setup`).
        model: without weights, with its adapter.
        arguments: of the trainer.

    Returns:
        Sentences about rows of the defenses' files that are left out.

    Raises:
        RequestError: with training's own sentence.
    """
    if build.guard.defenses:
        refuse_unguarded(arguments, combines=build.guard.pulls("combine"), beside=build.guard.pulling("beside"))
    base = Unsampled(
        lambda: None,
        build.tokenizer,
        evaluation_questions=build.base.evaluation_questions,
        identity=build.base.identity(),
    )
    base.task_rows = _task_rows(build, arguments)
    known, table, length = embedding_count(model), table_length(model), build.guard.max_length
    build.guard.check(model, base, lambda rows: encode_rows(build.tokenizer, rows, length, known, table=table))
    return left_out({**build.base.notes, **base.notes})


def _task_rows(build: Any, arguments: Any) -> int | None:
    """How many rows of the task training will read, as its trainer counts them."""
    if build.encoded is None:
        return task_rows_ahead(arguments, len(build.examples), 1.0, prompts=True)
    share = sum(row.source == "task" for row in build.encoded) / len(build.encoded)
    return task_rows_ahead(arguments, len(build.encoded), share)
