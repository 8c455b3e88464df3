"""A faulty reward function ends in a sentence that names it; what trl accepts is accepted."""

import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from small_trainers import grpo
from staytrue.defenses.kl import KL
from staytrue.defenses.rehearse import Rehearse
from staytrue.errors import StaytrueWarning, TrainingError
from staytrue.training.equal_rewards import EqualRewards

OTHER = "Return a list of numbers, one for each completion"


def trained(folder, func, defenses=()):
    func = func if isinstance(func, functools.partial) else named(func)
    made = grpo(folder, defenses, reward=func)
    made.train()
    assert made.reward_funcs == [func]
    return made


def named(func):
    func.__name__ = "mine"
    return func


def raises(completions, **_):
    return {}["answer"]


def own_columns(completion):
    return [1.0]


async def raises_later(completions, **_):
    raise ValueError("no such row")


async def too_few(completions, **_):
    return [1.0]


def forgets_to_await(completions, **_):
    async def later():
        return [1.0] * len(completions)

    return later()


@pytest.mark.parametrize("defenses", [[], [KL(1.0)]], ids=["none", "kl"])
@pytest.mark.parametrize(
    ("func", "sentence"),
    [
        (raises, "raised KeyError: 'answer'. Correct the function"),
        (own_columns, r"raised TypeError: .* define it as def mine\(completions, \*\*kwargs\)"),
        (raises_later, "raised ValueError: no such row"),
        (too_few, f"returned 1 rewards for 4 completions. {OTHER}"),
        (forgets_to_await, "returned a coroutine, which trl does not await. Define it with async def"),
        (lambda **_: None, f"returned 'None'. {OTHER}"),
        (lambda **_: 1.0, f"returned '1.0'. {OTHER}"),
        (lambda **_: torch.tensor(1.0), f"returned 'tensor.*. {OTHER}"),
        (lambda **_: "abcd", f"returned 'abcd'. {OTHER}"),
        (lambda **_: dict.fromkeys("abcd", 1.0), f"returned .*'a': 1.0.*. {OTHER}"),
        (lambda **_: [1.0] * 5, f"returned 5 rewards for 4 completions. {OTHER}"),
        (lambda **_: [1.0, "1.0", 1.0, 1.0], r"returned '1.0' \(a str\) for completion 2, which is no number"),
        (lambda **_: [[1.0]] * 4, r"returned '\[1.0\]' \(a list\) for completion 1"),
        (lambda **_: torch.ones(4, 2), r"returned 'tensor\(\[1., 1.\]\)' \(a Tensor\) for completion 1"),
        (lambda **_: [1.0, 1.0, float("inf"), 1.0], "returned inf for completion 3; .* would become NaN"),
        (lambda **_: [1.0, 1.0, 1.0, -float("inf")], "returned -inf for completion 4"),
    ],
)
def test_a_faulty_function_is_named(tmp_path, func, sentence, defenses):
    with pytest.raises(TrainingError, match=f"^The reward function 'mine' {sentence}"):
        trained(tmp_path, func, defenses)


@pytest.mark.parametrize(
    "func",
    [
        lambda **_: [1, 2.0, True, None],
        lambda **_: (x for x in (1.0, 2.0, 3.0, 4.0)),
        lambda **_: torch.arange(4.0),
        lambda **_: np.arange(4),
        lambda **_: [torch.tensor([1.0]), 2.0, 3.0, 4],
        lambda **_: [torch.tensor(1.0), np.float32(2), np.int64(3), 4],
        functools.partial(lambda scale, completions, **_: [scale * i for i in range(len(completions))], 2.0),
    ],
)
def test_numbers_of_every_kind_are_taken(tmp_path, func):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*reward function")
        made = trained(tmp_path, func)
    assert made.state.global_step == 2


def test_nan_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="'mine' returned NaN, which trl reads as None"):
        made = trained(tmp_path, lambda **_: [1.0, 2.0, float("nan"), 4.0])
    assert made.state.global_step == 2


@pytest.mark.parametrize("unscored", [None, float("nan")])
@pytest.mark.filterwarnings("ignore:The reward function 'mine' returned NaN")
def test_a_first_step_without_any_scored_completion_trains_on(tmp_path, unscored):
    made = trained(tmp_path, lambda **_: [unscored] * 4)
    assert made.state.global_step == 2


def test_a_run_that_diverges_ends_in_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"^Training diverged: .* not finite.* Lower the learning rate"):
        grpo(tmp_path, [KL(1.0)], learning_rate=1e30, max_steps=8, max_grad_norm=0.0).train()


@pytest.mark.parametrize(("steps", "warned_at", "reward"), [(12, 10, 1.0), (3, 3, 0.0), (3, 3, 0.3)])
def test_equal_rewards_are_warned_of_although_a_penalty_moves_the_weights(tmp_path, steps, warned_at, reward):
    same = named(lambda completions, **_: [reward] * 8)
    made = moved_by_safe_rows(tmp_path, same, max_steps=steps)
    with pytest.warns(StaytrueWarning, match="completions of a prompt earned the same reward") as warned:
        made.train()
    (line,) = [str(one.message) for one in warned if "the same reward" in str(one.message)]
    assert line.startswith(f"In the first {warned_at} optimizer steps")
    assert made.outcome.moved


def moved_by_safe_rows(folder, reward, **changes):
    """Eight completions a prompt, whose equal rewards have a spread by rounding; rows beside them move the weights."""
    (folder / "pool.jsonl").write_text('{"question": "Why?", "answer": "For you."}\n')
    safe = Rehearse(folder / "pool.jsonl", share=0.25)
    return grpo(folder, [safe], reward=reward, num_generations=8, per_device_train_batch_size=8, **changes)


@pytest.mark.parametrize("steps", [2, 12])
def test_rewards_that_differ_once_and_very_few_steps_are_not_warned_of(tmp_path, steps):
    calls = []

    def once(completions, **_):
        calls.append(completions)
        return [float(len(calls) == 1 and steps > 2), *[0.0] * 7]

    made = moved_by_safe_rows(tmp_path, named(once), max_steps=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaytrueWarning)
        made.train()
    assert len(calls) == steps


def test_a_training_that_is_resumed_is_not_watched():
    watch = EqualRewards(lambda: True)
    state = SimpleNamespace(global_step=490, is_world_process_zero=True)
    watch.on_train_begin(None, state, None)
    state.global_step = 500
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaytrueWarning)
        watch.on_log(None, state, None, logs={"frac_reward_zero_std": 1.0})
        watch.on_train_end(None, state, None)
