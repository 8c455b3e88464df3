"""Faults of a script's reward functions, as sentences that name the function; trl ends in an error of its own inside.

A reward function returns one number for each completion, or None for a completion that it does not score.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Number
from typing import Any

from torch import Tensor, nn

from staytrue.errors import StaytrueError, StaytrueWarning, TrainingError

_WAY_OUT = "Return a list of numbers, one for each completion, or None for a completion that is not scored."


@contextmanager
def checked_rewards(trainer: Any, count: int) -> Iterator[None]:
    """Check what a trainer's reward functions return inside; reward models are left as they are.

    Args:
        trainer: trl's, with `reward_funcs` and `reward_func_names`.
        count: number of completions that are scored.

    Raises:
        TrainingError: a function raises, or returns something else than one number or None per completion, or infinity.
    """
    plain = trainer.reward_funcs
    names = trainer.reward_func_names
    trainer.reward_funcs = [_checked(func, name, count) for func, name in zip(plain, names, strict=True)]
    try:
        yield
    finally:
        trainer.reward_funcs = plain


def _checked(func: Any, name: str, count: int) -> Any:
    if isinstance(func, nn.Module):
        return func
    if _is_async(func):

        async def call(**kwargs: Any) -> list[Any]:
            with _naming(name):
                rewards = await func(**kwargs)
                return _list_of(rewards, name, count)

        return call

    def plain_call(**kwargs: Any) -> list[Any]:
        with _naming(name):
            return _list_of(func(**kwargs), name, count)

    return plain_call


def _is_async(func: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine, as trl decides it."""
    while isinstance(func, functools.partial):
        func = func.func
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(func.__call__)  # type: ignore[operator]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Around a reward function: its exception becomes a sentence that names the function."""
    try:
        yield
    except StaytrueError:
        raise
    except Exception as error:  # a user's own code raises anything
        way_out = "Correct the function."
        if isinstance(error, TypeError) and "argument" in str(error):
            way_out = (
                "trl passes prompts, completions, completion_ids, each column of the rows and more by name; define it "
                f"as def {name}(completions, **kwargs)."
            )
        raise TrainingError(
            f"The reward function {name!r} raised {type(error).__name__}: {error}. {way_out}"
        ) from error


def _list_of(rewards: Any, name: str, count: int) -> list[Any]:
    """The rewards as a list.

    Raises:
        TrainingError: they are not one number or None for each completion, or one is infinite.
    """
    if inspect.isawaitable(rewards):
        if inspect.iscoroutine(rewards):
            rewards.close()
        raise TrainingError(
            f"The reward function {name!r} returned a coroutine, which trl does not await. Define it with async def."
        )
    single = isinstance(rewards, str | bytes | Mapping) or not isinstance(rewards, Iterable)
    if single or (isinstance(rewards, Tensor) and rewards.ndim == 0):
        raise TrainingError(f"The reward function {name!r} returned {str(rewards)[:60]!r}. {_WAY_OUT}")
    listed = list(rewards)
    if len(listed) != count:
        raise TrainingError(
            f"The reward function {name!r} returned {len(listed)} rewards for {count} completions. {_WAY_OUT}"
        )
    numbers = [_number(reward, name, place) for place, reward in enumerate(listed, start=1)]
    _warn_of_nan(numbers, name)
    return numbers


def _number(reward: Any, name: str, place: int) -> float | None:
    if reward is None:
        return None
    if hasattr(reward, "item") and math.prod(getattr(reward, "shape", ())) == 1:
        reward = reward.item()
    scalar = isinstance(reward, Number)
    if not scalar or isinstance(reward, complex):
        raise TrainingError(
            f"The reward function {name!r} returned {str(reward)[:60]!r} (a {type(reward).__name__}) for completion "
            f"{place}, which is no number. {_WAY_OUT}"
        )
    number = float(reward)
    if math.isinf(number):
        raise TrainingError(
            f"The reward function {name!r} returned {number} for completion {place}; its group would have no finite "
            "advantage, and the weights would become NaN. Return a finite number."
        )
    return number


def _warn_of_nan(numbers: Sequence[float | None], name: str) -> None:
    if any(number is not None and math.isnan(number) for number in numbers):
        warnings.warn(
            f"The reward function {name!r} returned NaN, which trl reads as None: those completions are not scored by "
            "it. Return None if that is meant.",
            StaytrueWarning,
            stacklevel=2,
        )
