"""`batches_of`: the batches that one process of a training reads, counted from its rows without a trainer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from staytrue.data.position_table import beyond_positions, refuse_longer, table_length
from staytrue.data.tokenize import Encoded, encode_prompt
from staytrue.errors import RecipeError
from staytrue.runs import preflight
from staytrue.training.step_count import too_few_rows


@dataclass(frozen=True)
class Batches:
    """The batches of a run; with several processes, those of each.

    Attributes:
        rows: of a batch.
        longest: tokens of the longest row of all, to which its whole batch is padded.
        number: of the batches of the run.
        tokens: of all of them, with padding.
        steps: optimizer steps.
        generated: answers that the model writes side by side; 0 where it writes none.
    """

    rows: int
    longest: int
    number: int
    tokens: int
    steps: int
    generated: int = 0


def batches_of(build: Any, arguments: Any) -> Batches:
    """Count the batches of the whole run.

    Args:
        build: the run before training (see `trainer_setup`).
        arguments: of its trainer, which know the number of processes.

    Raises:
        RecipeError: the rows fill no batch.
    """
    if build.encoded is None:
        return _of_answers(build, arguments)
    rows = arguments.per_device_train_batch_size
    lengths = [length_of(row) for row in build.encoded]
    if arguments.packing:
        lengths = [min(arguments.max_length, sum(lengths))] * math.ceil(sum(lengths) / arguments.max_length)
    random.Random(0).shuffle(lengths)
    groups = [lengths[i : i + rows] for i in range(0, len(lengths), rows)]
    if arguments.dataloader_drop_last:
        groups = [group for group in groups if len(group) == rows]
    share = _share(len(groups), arguments)
    if not share:
        raise RecipeError(too_few_rows(len(lengths), arguments))
    steps = preflight.optimizer_steps(arguments, share)
    number = _micro_batches(steps, share, arguments.gradient_accumulation_steps)
    joined = arguments.padding_free and not arguments.packing
    tokens = sum(sum(group) if joined else len(group) * max(group) for group in groups) * number // len(groups)
    return Batches(min(rows, len(lengths)), max(lengths), number, tokens, steps)


def check_positions(model: Any, build: Any, batches: Batches) -> list[str]:
    """A sentence about rows that are longer than the model's positions; where it has a table of them, refuse such rows.

    In packs, positions begin anew with each row.

    Raises:
        ModelError: the longest row, or the longest prompt with a completion, is longer than the table.
    """
    table = table_length(model)
    if build.encoded is None:
        what = "The longest prompt, with its completion,"
        refuse_longer(batches.longest, table, what, "Lower train.max_completion_length.")
        return []
    lengths = [length_of(row) for row in build.encoded]
    refuse_longer(max(lengths), table, "The longest row", "Lower train.max_length.")
    return beyond_positions(model, lengths)


def _share(batches: int, arguments: Any) -> int:
    """The batches that each process reads in an epoch; accelerate repeats some rows where they do not divide evenly."""
    whole, rest = divmod(batches, int(arguments.world_size))
    return whole + (rest > 0 and not arguments.dataloader_drop_last)


def _of_answers(build: Any, arguments: Any) -> Batches:
    """The batches of GRPO, if every answer has the most tokens that it may have."""
    prompts = [len(encode_prompt(build.tokenizer, row.prompt)) for row in build.examples]
    at_once = arguments.generation_batch_size // arguments.num_generations
    rows = arguments.per_device_train_batch_size
    if len(prompts) < at_once:
        raise RecipeError(too_few_rows(len(prompts), arguments))
    answers = len(prompts) // at_once * at_once * arguments.num_generations * arguments.num_iterations
    micro_batches = answers // (rows * arguments.world_size)
    steps = preflight.optimizer_steps(arguments, micro_batches)
    longest = max(prompts) + arguments.max_completion_length
    number = _micro_batches(steps, micro_batches, arguments.gradient_accumulation_steps)
    generated = arguments.generation_batch_size // arguments.world_size
    return Batches(rows, longest, number, number * rows * longest, steps, generated)


def _micro_batches(steps: int, epoch: int, accumulated: int) -> int:
    """Batches of a run whose epochs have so many; the last step of an epoch has what is left."""
    epochs, rest = divmod(steps, math.ceil(epoch / accumulated))
    return epochs * epoch + min(rest * accumulated, epoch)


def length_of(row: Encoded) -> int:
    """Tokens of a row."""
    return len(row.input_ids)
