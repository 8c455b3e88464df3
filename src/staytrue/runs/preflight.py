"""Tries the model, creates all that training needs and fetches one batch, before a run is recorded as begun.

trl and transformers do this inside of `train()`, where a wrong setting ends in a traceback.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import Trainer, get_scheduler

from staytrue.errors import ModelError, RecipeError
from staytrue.utils.validation import in_one_line

_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_FEWEST = 10  # steps; a shorter run has no warm-up by default
_RATES_READ = 10_000


def try_two_tokens(model: Any) -> None:
    """Call the model once as trl will at each step.

    Raises:
        ModelError: trl does not know this kind of model.
    """
    text, training = torch.tensor([[1, 2]], device=next(model.parameters()).device), model.training
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=text, labels=text, fused_lm_head=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code raises anything
        raise ModelError(
            f"trl cannot train a model of type {model.config.model_type}: two tokens end in {type(error).__name__} "
            f"({error}). Set train.router_aux_loss_coef to 0.0 if it is a mixture of experts, or use another model."
        ) from None
    finally:
        model.train(training)


def prepare(trainer: Any, *, fit_warmup: bool) -> int:
    """Create the optimizer, check the schedule and fetch a batch; random numbers are drawn as if nothing had been.

    Args:
        trainer: a guarded trainer.
        fit_warmup: the recipe sets no `warmup_steps`, so that staytrue's default is lowered to a tenth of the steps.

    Returns:
        The number of optimizer steps of the run.

    Raises:
        RecipeError: the rows fill no batch, or the learning rate is 0 at each step.
    """
    trainer.create_optimizer()
    with _same_random_numbers():
        loader = trainer.get_train_dataloader()
        next(iter(loader))
    steps = optimizer_steps(trainer.args, len(loader))
    if fit_warmup:
        trainer.args.warmup_steps = fitted_warmup(trainer.args.warmup_steps, steps)
    check_schedule(trainer.args, steps)
    return steps


def check_optimizer(arguments: Any, model: Any) -> None:
    """Refuse an optimizer whose package is not installed, or that lacks a setting that it needs.

    Args:
        arguments: the trainer's.
        model: with its adapter; without weights in a check.

    Raises:
        RecipeError: the optimizer, and what transformers says of it.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, ValueError) as error:
        raise RecipeError(
            f"train.optim {getattr(arguments.optim, 'value', arguments.optim)} cannot be used: "
            f"{in_one_line(error).removeprefix('ImportError: ')}. Or take train.optim out."
        ) from None


def optimizer_steps(arguments: Any, batches: int) -> int:
    """The number of optimizer steps, as transformers counts them."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    epochs = float(arguments.num_train_epochs)
    accumulated = math.ceil(batches / int(arguments.gradient_accumulation_steps))
    return math.ceil(epochs * max(accumulated, 1))


def fitted_warmup(warmup: float, steps: int) -> float:
    """At most a tenth of the steps; a share of the steps is at most a tenth already, except for very few steps."""
    if warmup < 1:
        return warmup if steps >= _FEWEST else 0
    return min(warmup, steps // 10)


def check_schedule(arguments: Any, steps: int) -> None:
    """Refuse a schedule that cannot be created, that never leaves its warm-up, or whose rate is 0 at each step."""
    warmup = arguments.get_warmup_steps(steps)
    kind = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    if kind not in _WITHOUT_WARMUP and warmup >= steps:
        raise RecipeError(
            f"train.warmup_steps is {arguments.warmup_steps:g}, and the run has {steps} optimizer steps, so that the "
            "learning rate never reaches train.learning_rate. Lower warmup_steps, or write a share such as 0.1."
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    kwargs = arguments.lr_scheduler_kwargs
    try:
        schedule = get_scheduler(kind, optimizer, warmup, steps, kwargs)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise RecipeError(
            f"train.lr_scheduler_type {kind} does not accept lr_scheduler_kwargs {kwargs or {}}: "
            f"{' '.join(str(error).split())}. Set lr_scheduler_kwargs, or use linear, cosine or constant."
        ) from None
    for _ in range(min(steps, _RATES_READ)):
        if optimizer.param_groups[0]["lr"] > 0:
            return
        optimizer.step()
        schedule.step()
    raise RecipeError(
        f"The learning rate is 0 at each of the run's {steps} optimizer steps (lr_scheduler_type {kind}, warmup_steps "
        f"{arguments.warmup_steps:g}), so nothing would be trained. Lower warmup_steps, or train more steps."
    )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the states of all random number generators at the end."""
    ours, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(arrays)
