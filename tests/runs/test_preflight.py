"""A run that would train nothing, or fail late, is refused before it is recorded; random numbers are not disturbed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import families
import tiny
from staytrue.config import recipe
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import ModelError, RecipeError, TrainingError
from staytrue.runs import preflight, train


def make(folder, rows=12, **changes):
    """A recipe without settings for tiny's model and so many rows."""
    if not (folder / "model").exists():
        tiny.save("qwen2", folder / "model")
    turns = [(Message("user", f"question {i}?"), Message("assistant", f"answer {i}")) for i in range(rows)]
    write_examples(folder / "rows.jsonl", [Example(pair) for pair in turns])
    return recipe.parse({"schema": 1, "model": "model", "data": "rows.jsonl", "lora": {}, **changes}, folder)


def reward(folder, rows=12, **settings):
    """A recipe of GRPO over sums."""
    configured = make(folder)
    (folder / "sums.jsonl").write_text('{"question": "What is 2 + 3?", "answer": "5"}\n' * rows)
    settings = {"max_completion_length": 4, **settings}
    return recipe.parse(
        {"schema": 1, "model": configured.model, "data": "sums.jsonl", "lora": {}, "trainer": "grpo", "task": "gsm8k",
         "train": settings}, folder,
    )  # fmt: skip


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (9, 0), (10, 1), (49, 4), (50, 5), (5000, 5)])
def test_the_default_warmup_is_five_steps_and_at_most_a_tenth_of_the_run(steps, warmup):
    assert preflight.fitted_warmup(5, steps) == warmup


def test_the_default_recipe_trains_on_twelve_rows(tmp_path):
    done = train.train(make(tmp_path), tmp_path / "run")
    weights = load_file(done.adapter / "adapter_model.safetensors")
    largest = max(float(w.abs().max()) for name, w in weights.items() if "lora_B" in name)
    assert largest == pytest.approx(1e-4, rel=1e-3)  # one step of Adam moves each weight by the learning rate
    written = recipe.read(tmp_path / "run" / "recipe.yaml")
    assert written.train["warmup_steps"] == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs is 0, so nothing would be trained"),
        ({"num_train_epochs": -1.0}, "num_train_epochs is -1.0, so nothing"),
        ({"max_steps": 0}, "max_steps is 0; it is 1 or more"),
        ({"max_steps": -2}, "max_steps is -2; it is 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it is above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; write a finite number"),
        ({"warmup_steps": 6, "max_steps": 5}, "warmup_steps is 6, and the run has 5 optimizer steps"),
        ({"warmup_steps": 5, "max_steps": 5}, "warmup_steps is 5, and the run has 5 optimizer steps"),
        ({"warmup_steps": 0.5}, "warmup_steps is 0.5, and the run has 1 optimizer steps"),
        (
            {"per_device_train_batch_size": 16, "dataloader_drop_last": True},
            "The 12 rows fill no batch of per_device_train_batch_size=16",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 0,
                "lr_scheduler_kwargs": {"num_decay_steps": 0, "num_stable_steps": 0},
            },
            "learning rate is 0 at each of the run",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay does not accept lr_scheduler_kwargs {}"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "cosine does not accept .*cycles"),
        (
            {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}},
            "inverse_sqrt does not accept",
        ),
        ({"dataloader_persistent_workers": True}, "persistent_workers option needs num_workers"),
        ({"dataloader_prefetch_factor": 2}, "prefetch_factor"),
        ({"eval_on_start": True}, "eval_on_start cannot be set in a recipe: use `staytrue eval`"),
        ({"prediction_loss_only": True}, "use `staytrue eval`"),
        ({"parallelism_config": {"tp_size": 2}}, "parallelism_config cannot be set"),
        ({"max_steps": 2.5}, "max_steps is 2.5; write a whole number"),
        ({"max_steps": True}, "max_steps is True; write a whole number"),
        ({"max_steps": "10"}, "max_steps is '10'; write a whole number"),
        ({"max_steps": 10**20}, "max_steps is 1(0{20}); write a number of at most 2,147,483,647"),
        ({"num_train_epochs": 1e30}, r"num_train_epochs is 1e\+30; write a number of at most 2,147,483,647"),
        ({"max_steps": None}, "max_steps is None; write a whole number"),
        ({"lr_scheduler_kwargs": {"min_lr": float("nan")}}, "lr_scheduler_kwargs is .*nan.*; write a finite number"),
        ({"log_level": "loud"}, "log_level is 'loud'; write one of passive, detail, debug"),
        ({"loss_type": "mse"}, "loss_type is 'mse'; write one of nll, dft"),
        ({"loss_type": "dapo"}, "loss_type is 'dapo'; write one of nll, dft"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; it is 1 or more"),
        ({"max_length": 0}, "max_length is 0; it is 1 or more"),
        ({"adam_beta1": 1.0}, "adam_beta1 is 1.0; it is 0 or more and below 1"),
        ({"optim": "sgdd"}, "trl does not accept these settings: sgdd"),
        ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs is .*; write text or a mapping"),
        ({"optim": "lomo"}, r"train.optim lomo cannot be used: You need to install `lomo_optim` .*\. Or take"),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}},
            "num_steps is 3, .* Set train.gradient_accumulation_steps instead",
        ),
    ],
)
def test_what_would_train_nothing_or_fail_late_is_refused_and_leaves_nothing(settings, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        train.train(make(tmp_path, train=settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_activation_offloading_needs_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="activation_offloading needs a CUDA GPU"):
        train.train(make(tmp_path, train={"activation_offloading": True}), tmp_path / "run")


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        (
            1,
            {"max_steps": 2},
            r"The 1 rows .* for 4 prompts at a time \(generation_batch_size 16 / num_generations 4\)",
        ),
        (1, {}, "for 4 prompts at a time"),
        (3, {}, "The 3 rows fill no batch"),
        (9, {"temperature": 0.0}, "temperature is 0.0; it is above 0"),
        (9, {"scale_rewards": "all"}, "scale_rewards is 'all'; write one of group, batch, none"),
        (9, {"importance_sampling_level": "row"}, "importance_sampling_level is 'row'; write one of token, sequence"),
        (9, {"reward_weights": [float("inf")]}, r"reward_weights is \[inf\]; write a finite number"),
        (9, {"top_p": 1.5}, "top_p is 1.5; it is above 0 and at most 1"),
        (9, {"loss_type": "nll"}, "loss_type is 'nll'; write one of grpo, dr_grpo,"),
        (9, {"multi_objective_aggregation": "sum"}, "is 'sum'; write one of sum_then_normalize, normalize_then_sum"),
        (9, {"generation_kwargs": {"temperature": 0}}, r"train.generation_kwargs.temperature is 0; it is above 0"),
        (
            9,
            {"generation_kwargs": {"temperature": 0.7}},
            r"is 0.7; log-probabilities are computed at train.temperature",
        ),
        (9, {"generation_kwargs": {"do_sample": False}}, "all completions of a prompt would be equal"),
        (9, {"generation_kwargs": {"max_token": 3}}, "no setting of transformers' GenerationConfig; did you mean 'max"),
        (9, {"generation_kwargs": {"num_return_sequences": 2}}, "train.num_generations is the number of completions"),
        (
            9,
            {"generation_kwargs": {"bad_words_ids": []}},
            "cannot sample .* `bad_words_ids` has to be a non-empty list",
        ),
        (9, {"num_generations": 1}, "num_generations is 1; it is 2 or more"),
        (9, {"eval_on_start": True}, "use `staytrue eval`"),
    ],
)
def test_a_reward_without_a_step_is_refused(rows, settings, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        train.train(reward(tmp_path, rows, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_rewards_are_all_equal_fails_and_says_why(tmp_path):
    equal = reward(tmp_path, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    with pytest.raises(TrainingError, match=r"No trained weight moved in 2 optimizer steps.*earned equal rewards"):
        train.train(equal, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


def test_whole_floats_are_whole_numbers(tmp_path):
    settings = {"max_steps": 2.0, "per_device_train_batch_size": 4.0, "gradient_accumulation_steps": 1.0}
    done = train.train(make(tmp_path, train=settings), tmp_path / "run")
    assert len((done.path / "metrics.jsonl").read_text().splitlines()) == 2
    assert recipe.read(done.path / "recipe.yaml").train["max_steps"] == 2


def test_a_failure_in_the_first_step_leaves_the_folder_free_and_a_later_one_does_not(tmp_path, monkeypatch):
    from staytrue.training.trainers import GuardedSFT

    usual, calls = GuardedSFT.training_step, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == fails_at:
            raise ArithmeticError("a setting without a check")
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(GuardedSFT, "training_step", failing)
    configured = make(tmp_path, train={"max_steps": 3, "gradient_accumulation_steps": 1})
    fails_at = 1
    with pytest.raises(TrainingError, match=r"failed in its first step.*ArithmeticError: a setting without a check"):
        train.train(configured, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    calls.clear()
    fails_at = 2
    with pytest.raises(ArithmeticError):
        train.train(configured, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "failed"


def test_random_numbers_are_drawn_as_if_no_batch_had_been_fetched():
    torch.manual_seed(3)
    expected = torch.rand(2)

    def loader():
        torch.rand(100)
        return [1, 2]

    torch.manual_seed(3)
    arguments = SimpleNamespace(
        max_steps=4, warmup_steps=0, get_warmup_steps=lambda steps: 0, lr_scheduler_type="linear",
        lr_scheduler_kwargs=None, learning_rate=1.0,
    )  # fmt: skip
    trainer = SimpleNamespace(args=arguments, create_optimizer=lambda: None, get_train_dataloader=loader)
    assert preflight.prepare(trainer, fit_warmup=False) == 4
    assert torch.equal(torch.rand(2), expected)


def test_llama_4_trains_through_our_head_where_trls_fails_and_is_refused_with_the_way_out_elsewhere(tmp_path):
    make(tmp_path)
    families.save("llama4_text", tmp_path / "llama4")
    settings = {"max_steps": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}
    changes = {
        "model": "llama4",
        "defenses": [{"kl": {}}],
        "lora": {"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]},
    }
    with pytest.raises(ModelError, match=r"type llama4_text: two tokens .* Set train.router_aux_loss_coef to 0.0"):
        train.train(make(tmp_path, train=settings, **changes), tmp_path / "run")
    train.train(make(tmp_path, train={**settings, "router_aux_loss_coef": 0.0}, **changes), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] > 0
