"""Values of a script's trainer config at which trl fails late, or which it ignores, are refused at once."""

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from staytrue.config.setting_values import refuse_late_values
from staytrue.errors import RecipeError


def config(kind, **changes):
    made = kind(output_dir="out", use_cpu=True, bf16=False, report_to="none")
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("kind", [SFTConfig, GRPOConfig])
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("per_device_train_batch_size", 0, "per_device_train_batch_size is 0; it is 1 or more"),
        ("per_device_train_batch_size", 2.5, "per_device_train_batch_size is 2.5; write a whole number"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps is 0; it is 1 or more"),
        ("max_steps", "x", "max_steps is 'x'; write a whole number"),
        ("max_steps", 2.5, "max_steps is 2.5; write a whole number"),
        ("learning_rate", float("nan"), "learning_rate is nan; write a finite number"),
        ("learning_rate", "1e-4", "learning_rate is '1e-4'; write a number"),
        ("weight_decay", float("inf"), "weight_decay is inf; write a finite number"),
        ("adam_beta1", -1.0, r"adam_beta1 is -1.0; it is 0 or more and below 1"),
        ("max_grad_norm", None, "max_grad_norm is None; write a number"),
        ("log_level", "x", "log_level is 'x'; write one of passive, detail"),
        ("adam_epsilon", -1e-8, "adam_epsilon is -1e-08; it is above 0"),
        ("optim_args", 3, "optim_args is 3; write text"),
        ("lr_scheduler_kwargs", "x", "lr_scheduler_kwargs is 'x'; write a mapping"),
        ("max_grad_norm", float("nan"), "max_grad_norm is nan; write a finite number"),
        ("max_grad_norm", [1.0], r"max_grad_norm is \[1.0\]; write a number"),
    ],
)
def test_they_are_refused(kind, key, value, sentence):
    with pytest.raises(RecipeError, match=f"^{sentence}"):
        refuse_late_values(config(kind, **{key: value}), "sft" if kind is SFTConfig else "grpo")


@pytest.mark.parametrize("kind", [SFTConfig, GRPOConfig, TrainingArguments])
def test_trls_own_defaults_are_not(kind):
    refuse_late_values(config(kind), "grpo" if kind is GRPOConfig else "sft")
    refuse_late_values(None, "sft")
    ordinary = {
        "max_steps": -1,
        "learning_rate": 0,
        "warmup_steps": 0.1,
        "logging_steps": 0.5,
        "seed": 3,
        "optim_args": "a=1",
    }
    refuse_late_values(config(kind, **ordinary), "grpo" if kind is GRPOConfig else "sft")


@pytest.mark.parametrize("kind", [SFTConfig, GRPOConfig])
def test_values_that_trl_takes_are_taken_and_whole_numbers_become_such(kind):
    made = config(kind, adam_epsilon=0.0, ddp_timeout=1800.0, max_steps=1e2, per_device_train_batch_size=4.0)
    refuse_late_values(made, "grpo" if kind is GRPOConfig else "sft")
    values = (made.adam_epsilon, made.ddp_timeout, made.max_steps, made.per_device_train_batch_size)
    assert values == (0, 1800, 100, 4)
    assert [type(value) for value in values] == [float, int, int, int]


def test_a_config_of_ones_own_may_name_types_that_only_a_type_checker_sees():
    class Mine(SFTConfig):
        place: "NotImported" = None  # noqa: F821

    made = config(Mine)
    refuse_late_values(made, "sft")
    made.max_steps = 2.5
    with pytest.raises(RecipeError, match=r"max_steps is 2.5"):
        refuse_late_values(made, "sft")
