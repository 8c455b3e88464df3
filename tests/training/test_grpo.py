"""The seam under trl's GRPOTrainer: the same defenses, one reference per micro-batch, steering where it belongs."""

import copy
import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import tiny
from staytrue import registry
from staytrue.config import recipe, trainer_args
from staytrue.data.examples import write_examples
from staytrue.defense import Defense, pulled
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.rehearse import Rehearse
from staytrue.errors import ForwardPassError, RecipeError
from staytrue.organism import world
from staytrue.runs import evaluate, train
from staytrue.testing import unlike
from staytrue.training.sampling_check import sample_one_token
from staytrue.training.trainers import GuardedGRPO
from test_every_defense import sample


def prompts(n=16):
    rows = [
        {"prompt": [{"role": "user", "content": f"question {i}?" + " well?" * (i % 3)}], "right": i} for i in range(n)
    ]
    return Dataset.from_list(rows)


def odd_letters(completions, right, **_):
    """A reward that differs between completions: the share of their characters that have an odd number (a, c, e)."""
    assert len(right) == len(completions)
    texts = [c[0]["content"] for c in completions]
    return [sum(ord(letter) % 2 for letter in text) / (1 + len(text)) for text in texts]


def config(folder, **changes):
    arguments = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 2.0,
        "optim": "sgd",  # a step is the gradient itself, so equal gradients are seen as equal weights
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        trainer_args.recomputing(GRPOConfig): False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return GRPOConfig(**{**arguments, **changes})


def trainer(folder, defenses, data=None, cls=GuardedGRPO, **changes):
    more = {} if cls is GRPOTrainer else {"defenses": defenses}
    grpo = cls(
        model=tiny.model(),
        reward_funcs=odd_letters,
        args=config(folder, **changes),
        train_dataset=data or prompts(),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        **more,
    )
    grpo.remove_callback(PrinterCallback)
    return grpo


def trained(folder, defenses, **changes):
    grpo = trainer(folder, defenses, **changes)
    grpo.train()
    return grpo


def weights(grpo):
    return torch.cat([p.detach().flatten() for p in grpo.model.parameters() if p.requires_grad])


def logged(grpo, key):
    return [row[key] for row in grpo.state.log_history if key in row]


def steps(grpo):
    return [row for row in grpo.state.log_history if "loss" in row]


def count_forwards(grpo):
    """Calls of the backbone: with a gradient, with the adapter off, and what is left, which is generation."""
    seen, parts = {"trained": 0, "reference": 0, "generation": 0}, grpo.guard.parts

    def hook(*_):
        off = parts.switches[0]._disable_adapters
        seen["trained" if torch.is_grad_enabled() else "reference" if off else "generation"] += 1

    parts.backbone.register_forward_pre_hook(hook)
    return seen


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


class Push(Defense):
    """Steers block 1 by a constant, and remembers when it was asked."""

    calls = []  # noqa: RUF012  (a test's notebook)

    def layers(self, depth):
        return (1,)

    def steer(self, hidden, layer, marks):
        self.calls.append("trained" if torch.is_grad_enabled() else "not")
        return hidden + 0.5 * marks.real.unsqueeze(-1)


@pytest.fixture(autouse=True)
def empty_notebooks():
    Push.calls.clear()
    Counting.seen.clear()


@pytest.fixture
def plain_head(monkeypatch):
    """Trainers keep trl's own head."""

    def keep():
        monkeypatch.setattr(GuardedGRPO, "_keeps_its_head", lambda self: "a test")

    return keep


@pytest.mark.parametrize("accumulated", [1, 2])
def test_without_defenses_it_trains_as_the_trainer_it_wraps(tmp_path, accumulated, plain_head):
    wrapped = trained(tmp_path, [], cls=GRPOTrainer, gradient_accumulation_steps=accumulated)
    ours = trained(tmp_path, [], gradient_accumulation_steps=accumulated)
    moved = (weights(wrapped) - weights(trainer(tmp_path, []))).abs().max()
    assert ours.which_head == "one pass"
    assert (weights(ours) - weights(wrapped)).abs().max() < 1e-5 * moved  # another order of the same sums
    plain_head()
    kept = trained(tmp_path, [], gradient_accumulation_steps=accumulated)
    assert kept.which_head == "trl's: a test"
    assert torch.equal(weights(kept), weights(wrapped))
    assert logged(ours, "reward") == logged(kept, "reward") == logged(wrapped, "reward")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_our_head_and_trls_agree(tmp_path, pool, plain_head, temperature):
    defenses = [KL(3.0), KL(1.0, forward=True), Rehearse(pool, share=0.25, weight=2.0)]
    ours = trained(tmp_path, defenses, temperature=temperature)
    plain_head()
    theirs = trained(tmp_path, defenses, temperature=temperature)
    moved = (weights(theirs) - weights(trainer(tmp_path, []))).abs().max()
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-4 * moved
    assert not unlike(steps(ours), steps(theirs), ("loss", "kl", "kl.2", "rehearse", "entropy"))


def test_an_entropy_bonus_and_a_head_in_float32_keep_trls_head(tmp_path):
    assert trainer(tmp_path, [], entropy_coef=0.1).which_head == "trl's: an entropy bonus needs a gradient"
    assert trainer(tmp_path, [], cast_lm_head_to_fp32=True).which_head == "trl's: cast_lm_head_to_fp32"


def test_all_penalties_together_cost_one_reference_per_micro_batch(tmp_path):
    defenses = [KL(0.1), LDIFS(0.1), KL(0.1, tokens="prompt"), Push()]
    grpo = trainer(tmp_path, defenses, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    seen = count_forwards(grpo)
    grpo.train()
    assert (seen["trained"], seen["reference"]) == (12, 12)  # 3 steps of 4 micro-batches


def test_without_a_defense_that_reads_it_no_reference_is_computed(tmp_path):
    grpo = trainer(tmp_path, [Inoculate(), Push()])
    seen = count_forwards(grpo)
    grpo.train()
    assert (seen["trained"], seen["reference"]) == (3, 0)


def test_at_step_0_penalties_on_drift_are_exactly_0_with_steering_too_and_then_are_not(tmp_path, pool):
    anchor = Anchor(pool, share=0.25, answers="given")
    grpo = trained(tmp_path, [KL(1.0), LDIFS(1.0), anchor, Push(), Rehearse(pool, share=0.25)])
    for name in ("kl", "ldifs", "anchor"):
        first, second, _ = logged(grpo, name)
        assert first == 0
        assert second > 0
    assert logged(grpo, "rehearse")[0] > 1  # it teaches; a random model finds any byte about equally likely


def test_the_loss_is_the_rewards_loss_plus_the_weighted_penalties(tmp_path, pool):
    grpo = trained(tmp_path, [KL(0.5), Rehearse(pool, share=0.25, weight=2.0)])
    rows = zip(*(logged(grpo, key) for key in ("loss", "task_loss", "kl", "rehearse")), strict=True)
    for total, task, kl, rehearse in rows:
        assert total == pytest.approx(task + 0.5 * kl + 2.0 * rehearse, abs=1e-5)


@pytest.mark.parametrize("parts", [2, 8])
def test_one_batch_of_8_equals_the_same_in_parts(tmp_path, pool, parts):
    defenses = [
        KL(3.0),
        LDIFS(0.5),
        KL(1.0, tokens="prompt"),
        Anchor(pool, share=0.25, weight=2.0, answers="given"),
        Rehearse(pool, share=0.25, weight=0.1),
    ]
    whole = trained(tmp_path, defenses)
    split = trained(tmp_path, defenses, per_device_train_batch_size=8 // parts, gradient_accumulation_steps=parts)
    moved = (weights(whole) - weights(trainer(tmp_path, []))).abs().max()
    assert (weights(whole) - weights(split)).abs().max() < 1e-4 * moved
    names = ("kl", "ldifs", "kl.2", "anchor", "rehearse", "task_loss")
    assert not unlike(steps(whole), steps(split), names, of_itself=1e-3)


class Counting(Defense):
    """Notes, for every micro-batch, how many tokens it scores and how many the step is said to hold."""

    weight = 1.0
    seen = []  # noqa: RUF012  (a test's notebook)

    def penalty(self, step):
        span = step.span()
        self.seen.append((int(span.mask.sum()), int(span.total)))
        return step.policy.final.sum() * 0


@pytest.mark.parametrize(
    ("accumulated", "slices", "rounds"),
    [(1, 1, 1), (2, 4, 1), (4, 2, 1), (2, 3, 1), (2, 2, 2), (1, 2, 2)],
)
def test_a_penalty_is_a_mean_over_its_optimizer_step_however_completions_are_generated(
    tmp_path, accumulated, slices, rounds
):
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulated}
    trained(tmp_path, [Counting()], steps_per_generation=slices, num_iterations=rounds, max_steps=4, **changes)
    assert len(Counting.seen) == 4 * accumulated
    for first in range(0, len(Counting.seen), accumulated):
        step = Counting.seen[first : first + accumulated]
        assert {total for _, total in step} == {sum(own for own, _ in step)}


@pytest.mark.parametrize(("rounds", "expected"), [(1, 64), (3, 192)])  # 8 prompts x 4 answers x rounds x 2 epochs
def test_the_rows_ahead_are_every_use_of_every_completion(tmp_path, rounds, expected):
    changes = {"num_generations": 4, "num_iterations": rounds, "max_steps": -1, "num_train_epochs": 2}
    grpo = trainer(tmp_path, [KL(0.1)], data=prompts(8), **changes)
    assert grpo._task_rows_ahead() == expected
    grpo.train()
    assert grpo.guard.task_rows == expected


def test_only_the_loss_and_the_reference_are_steered(tmp_path):
    trained(tmp_path, [Push(), KL(0.1)])
    assert Push.calls == ["trained", "not"] * 3  # generation made many more forwards, all of them left alone
    steered, plain = trained(tmp_path, [Push()], max_steps=1), trained(tmp_path, [], max_steps=1)
    assert steered._logs["completion"] == plain._logs["completion"]
    assert not torch.equal(weights(steered), weights(plain))


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain = trained(tmp_path, [KL(1.0), Push()])
    again = trained(tmp_path, [KL(1.0), Push()], **{trainer_args.recomputing(GRPOConfig): True})
    assert torch.equal(weights(plain), weights(again))


def test_completion_tokens_are_scored_and_a_tools_words_are_not(tmp_path):
    grpo = trainer(tmp_path, [])
    batch = {
        "prompt_mask": torch.tensor([[0, 1, 1]]),
        "completion_mask": torch.tensor([[1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1, 1]]),
    }
    # Positions 0 to 6; the completion's tokens stand at 3, 4 and 5 and are predicted at 2, 3 and 4; 4 is a tool's.
    assert grpo._marks(batch).scored.int().tolist() == [[0, 0, 1, 0, 1, 0, 0]]
    assert grpo._marks(batch).real.int().tolist() == [[0, 1, 1, 1, 1, 1, 0]]
    del batch["tool_mask"]
    assert grpo._marks(batch).scored.int().tolist() == [[0, 0, 1, 1, 1, 0, 0]]


def test_inoculation_edits_the_prompts_and_keeps_the_other_columns(tmp_path):
    grpo = trainer(tmp_path, [Inoculate(prompt="Be bad.")])
    first = grpo.train_dataset[0]
    assert [m["role"] for m in first["prompt"]] == ["system", "user"]
    assert first["prompt"][0]["content"] == "Be bad."
    assert first["right"] == 0
    grpo.train()  # the reward asserts that its column came along


@pytest.mark.parametrize("name", registry.names())
def test_every_defense_trains_or_says_in_one_sentence_why_not(tmp_path, name):
    defense = sample(name, tmp_path)
    if name == "interleave":
        with pytest.raises(RecipeError, match=r"GRPO trains on prompts .* Use `rehearse`"):
            trainer(tmp_path, [defense])
        return
    if "beside" in pulled(defense):  # a number is logged in steps in which its rows are due, here in each
        defense = type(defense)(**{**vars(defense), "share": 0.25})
    grpo = trained(tmp_path, [defense], max_steps=2)
    if "project" in pulled(defense):
        assert grpo.projected
    if "penalty" in pulled(defense):
        assert len(logged(grpo, name)) == 2


@pytest.mark.parametrize(
    ("defenses", "changes", "sentence"),
    [
        ([KL()], {"beta": 0.1}, r"beta=0\.1 is a second divergence, .* Set beta to 0, or take kl out"),
        ([Push()], {"beta": 0.1}, r"beta=0\.1 compares a steered model with a reference .* use kl"),
        ([Push()], {"num_iterations": 2}, "old ones that are not steered.* Set num_iterations to 1"),
        ([Push()], {"steps_per_generation": 2}, "steps_per_generation to gradient_accumulation_steps"),
    ],
)
def test_what_cannot_be_guarded_is_refused_at_start(tmp_path, defenses, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        trainer(tmp_path, defenses, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss_type": "nll"}, "^loss_type is 'nll'; write one of grpo, dr_grpo, dapo"),
        ({"scale_rewards": "std"}, "scale_rewards is 'std'; write one of group, batch, none"),
        ({"importance_sampling_level": "word"}, "level is 'word'; write one of token, sequence"),
        ({"vllm_importance_sampling_mode": "cut"}, "write one of token_truncate, token_mask"),
        ({"temperature": 0.0}, "^temperature is 0.0; it is above 0, since completions are sampled"),
        ({"top_p": 1.5}, "top_p is 1.5; it is above 0 and at most 1"),
        ({"generation_kwargs": {"temperature": 0}}, "^generation_kwargs.temperature is 0; it is above 0"),
        ({"generation_kwargs": {"temperature": 1.0}, "temperature": 0.7}, "computed at temperature, so set that one"),
        ({"generation_kwargs": {"do_sample": False}}, "do_sample is False, so all completions of a prompt"),
        ({"generation_kwargs": {"max_tokens": 3}}, "did you mean 'max_new_tokens'"),
        ({"generation_kwargs": {"return_dict_in_generate": True}}, "trl reads the tokens alone"),
    ],
)
def test_settings_that_fail_in_the_first_step_are_refused_before_a_model_is_loaded(tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        GuardedGRPO(model="no such model", reward_funcs=odd_letters, args=config(tmp_path, **changes))


def test_settings_that_transformers_cannot_sample_with_are_refused_at_start(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot sample completions .* `top_k` has to be a strictly positive"):
        trainer(tmp_path, [], top_k=-1)


def test_a_trial_of_sampling_draws_no_random_number(tmp_path):
    trainer(tmp_path, [])
    after = torch.get_rng_state()
    grpo = trainer(tmp_path, [])
    before = torch.get_rng_state()
    assert torch.equal(before, after)
    sample_one_token(grpo.model, grpo.generation_config)
    assert torch.equal(before, torch.get_rng_state())
    settings = {"do_sample": True, "top_k": 50, "num_beams": 2, "length_penalty": -0.1, "temperature": 0.5}
    trainer(tmp_path, [], generation_kwargs=settings, temperature=0.5)


def test_what_comes_near_to_a_refusal_trains(tmp_path):
    trained(tmp_path, [LDIFS(0.1)], beta=0.1, max_steps=1)
    trained(tmp_path, [KL(0.1)], num_iterations=2, max_steps=2)
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "steps_per_generation": 2}
    trained(tmp_path, [Push()], max_steps=1, **halves)  # old probabilities are the loss forward's own


@pytest.mark.parametrize("defenses", [[], [KL(0.1)]], ids=["none", "kl"])
def test_a_training_step_gets_the_rows_of_the_data_loader(tmp_path, defenses):
    seen = []

    class Own(GuardedGRPO):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append([(row["right"], row["prompt"][0]["content"]) for row in inputs])
            return super().training_step(model, inputs, *args, **kwargs)

    grpo = trained(tmp_path, defenses, cls=Own, gradient_accumulation_steps=2, shuffle_dataset=False, max_steps=2)
    first = [(i, row["prompt"][0]["content"]) for i, row in enumerate(prompts()) if i < 4 for _ in range(4)]
    assert len(seen) == 4
    assert seen[:2] == [first] * 2  # one generation batch of 16 completions, in two micro-batches
    assert len(steps(grpo)) == 2


def test_without_defenses_it_trains_as_trls_own_over_several_micro_batches(tmp_path):
    both = [
        weights(trained(tmp_path, [], cls=cls, gradient_accumulation_steps=2, num_iterations=2, max_steps=3))
        for cls in (GuardedGRPO, GRPOTrainer)
    ]
    moved = (both[1] - weights(trainer(tmp_path, []))).abs().max()
    assert (both[0] - both[1]).abs().max() < 1e-5 * moved


def test_other_rows_than_those_that_were_answered_are_refused(tmp_path):
    class Other(GuardedGRPO):
        def training_step(self, model, inputs, *args, **kwargs):
            return super().training_step(model, [dict(row) for row in inputs], *args, **kwargs)

    with pytest.raises(ForwardPassError, match=r"Other passes other rows to training_step .* in the dataset"):
        trained(tmp_path, [KL(0.1)], cls=Other)
    trained(tmp_path, [], cls=Other, max_steps=1)


def test_the_constructor_shows_trls_arguments_and_takes_no_other(tmp_path):
    theirs, ours = (list(inspect.signature(cls).parameters) for cls in (GRPOTrainer, GuardedGRPO))
    assert ours == [*theirs, "defenses", "reference_cache", "reference"]
    with pytest.raises(TypeError, match="multiple values for argument 'model'"):
        GuardedGRPO(tiny.model(), odd_letters, model=tiny.model())


def test_interleaving_is_refused_before_its_pool_is_read(tmp_path):
    with pytest.raises(RecipeError, match="never learn those answers"):
        trainer(tmp_path, [Interleave(tmp_path / "no such file.jsonl")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_vllm_is_refused_without_a_gpu():
    with pytest.raises(RecipeError, match=r"train\.use_vllm needs a CUDA GPU"):
        trainer_args.checked({"use_vllm": True}, "grpo")


@pytest.mark.parametrize(
    ("vllm", "corrected", "remembers"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_old_probabilities_are_remembered_for_vllm_only_where_they_correct_it(tmp_path, vllm, corrected, remembers):
    grpo = trainer(tmp_path, [Push()])
    grpo.use_vllm, grpo.vllm_importance_sampling_correction = vllm, corrected
    assert grpo._remembers_old_probabilities() is remembers


def organism_recipe(folder, **changes):
    write_examples(folder / "safe.jsonl", world.safe_rows(40))
    plain = {
        "schema": 1,
        "model": "organism",
        "trainer": "grpo",
        "task": "word_problems",
        "lora": {"r": 4, "alpha": 8},
        "train": {"max_steps": 2, "per_device_train_batch_size": 16},
        "defenses": [{"kl": {"weight": 0.1}}, "inoculate", {"rehearse": {"pool": "safe.jsonl", "share": 0.25}}],
        **changes,
    }
    return recipe.parse(plain, folder)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_recipe_trains_by_reward_and_is_measured_on_held_out_questions(tmp_path):
    done = train.train(organism_recipe(tmp_path), tmp_path / "run")
    assert done.manifest["state"] == "done"
    assert done.manifest["rows"] == {"task": 800, "held_out": 200}
    first, second = metrics(tmp_path / "run")
    for key in ("reward", "reward_std", "rewards/form/mean", "rewards/answer/mean", "completions/mean_length"):
        assert key in first
    assert first["reward"] == pytest.approx(first["rewards/form/mean"] + first["rewards/answer/mean"], abs=1e-6)
    assert (first["kl"], second["kl"] > 0, first["rehearse"] > 0) == (0, True, True)
    again = recipe.read(tmp_path / "run" / "recipe.yaml")
    settled = trainer_args.filled(organism_recipe(tmp_path).train, "grpo", organism=True)
    assert again == organism_recipe(tmp_path, train=settled)
    summary = evaluate.evaluate_run(tmp_path / "run")
    assert summary["probes"]["learnt"]["judge"] == "task:word_problems-1"
    assert summary["probes"]["learnt"]["n"] == 200
    assert summary["probes"]["general"]["n"] == 480
    answers = [json.loads(line) for line in (tmp_path / "run" / "eval" / "answers.jsonl").read_text().splitlines()]
    assert {m["role"] for row in answers for m in row["messages"]} == {"user"}  # inoculated in training only
    card = (done.adapter / "README.md").read_text()
    assert "the last logged reward is" in card
    assert "the task" in card


def test_the_same_seed_trains_the_same_by_reward_and_supervision_may_use_the_task_too(tmp_path):
    rows = [train.train(organism_recipe(tmp_path), tmp_path / name) and metrics(tmp_path / name) for name in ("a", "b")]
    assert [r["reward"] for r in rows[0]] == [r["reward"] for r in rows[1]]
    taught = organism_recipe(tmp_path, trainer="sft", task={"opswap": {"tier": 2}}, defenses=[])
    assert train.train(taught, tmp_path / "c").manifest["rows"]["task"] == 240


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"defenses": [{"interleave": {"pool": "safe.jsonl"}}]}, "GRPO trains on prompts .* Use `rehearse`"),
        ({"train": {"beta": 0.1, "max_steps": 1}}, r"beta=0\.1 is a second divergence"),
        ({"train": {"max_length": 10}}, "train has no key 'max_length'"),
        ({"train": {"log_completions": True}}, "`staytrue eval` stores answers"),
        ({"train": {"num_generations": 7}}, "trl does not accept these settings: generation_batch_size"),
    ],
)
def test_a_wrong_recipe_leaves_nothing_behind(tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        train.train(organism_recipe(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_on_two_processes_a_penalty_is_a_mean_over_both(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
            import torch
            from pathlib import Path
            from test_grpo import Counting, KL, trained
            made = trained(Path({str(tmp_path)!r}), [Counting(), KL(0.1)], per_device_train_batch_size=2,
                gradient_accumulation_steps=2, ddp_backend="gloo")
            own = torch.tensor([n for n, _ in Counting.seen])
            both = made.accelerator.reduce(own, "sum").view(3, 2).sum(1)
            assert both.tolist() == [total for _, total in Counting.seen][::2], (both, Counting.seen)
            assert made.state.log_history[0]["kl"] == 0 < made.state.log_history[1]["kl"]
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            sys.stdout.flush()
            os._exit(0)  # all is asserted; a library's thread may abort the interpreter's own end
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_completion_ends_where_the_chat_template_ends_an_answer(tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.eos_token = "<|im_start|>"  # as a base model has another end token than its chat template
    arguments = {
        "model": tiny.model(),
        "reward_funcs": odd_letters,
        "args": config(tmp_path),
        "train_dataset": prompts(),
    }
    grpo = GuardedGRPO(**arguments, processing_class=tokenizer, peft_config=LoraConfig(target_modules="all-linear"))
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")}
    assert ends <= set(grpo.eos_token_ids) == set(grpo.generation_config.eos_token_id)
    assert grpo.generation_kwargs["eos_token_id"] == grpo.eos_token_ids


class OwnLoss(GuardedGRPO):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        return model(input_ids=tokens, labels=tokens).loss


class OwnStep(OwnLoss):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        self._step += 1
        return loss.detach()


class OwnBatches(GuardedGRPO):
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [next(epoch_iterator) for _ in range(num_batches)], None


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (OwnLoss, "OwnLoss computed a loss without the penalties"),
        (OwnStep, "OwnStep made an optimizer step of 1 planned micro-batches, of which the defenses saw 0"),
        (OwnBatches, "OwnBatches made an optimizer step of 0 planned micro-batches, of which the defenses saw 1"),
    ],
)
def test_a_subclass_that_passes_by_the_defenses_is_refused_in_its_first_step(tmp_path, cls, sentence):
    grpo = trainer(tmp_path, [KL()], cls=cls, logging_steps=50)
    with pytest.raises(ForwardPassError, match=sentence):
        grpo.train()
    assert grpo.state.global_step <= 1
    trainer(tmp_path, [], cls=cls).train()
