"""What GRPO samples and compares: where completions end, and settings that would fail late or contradict a defense."""

from __future__ import annotations

import copy
from typing import Any

import torch

from staytrue.data.end_of_turn import end_of_turn
from staytrue.errors import RecipeError
from staytrue.utils.validation import in_one_line


def sample_one_token(model: Any, settings: Any) -> None:
    """Sample one token for two prompts, and leave the random numbers as they were.

    Args:
        model: a causal language model.
        settings: transformers' GenerationConfig of the run.

    Raises:
        RecipeError: transformers cannot sample with these settings.
    """
    device, training = next(model.parameters()).device, model.training
    prompts = torch.ones((2, 2), dtype=torch.long, device=device)
    once = copy.deepcopy(settings)
    once.max_new_tokens, once.min_new_tokens = 1, None
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=once)
    except (TypeError, ValueError, NotImplementedError) as error:  # as transformers raises them for settings
        raise RecipeError(
            f"transformers cannot sample completions with the run's settings: {in_one_line(error)} Change temperature, "
            "top_p, top_k, min_p, repetition_penalty or generation_kwargs."
        ) from error
    finally:
        model.train(training)


def stop_at_the_end_of_turn(trainer: Any, tokenizer: Any) -> None:
    """End a completion also at the token with which the chat template ends an answer, as evaluations do.

    Args:
        trainer: trl's GRPOTrainer.
        tokenizer: with the chat template.
    """
    missing = sorted(end_of_turn(tokenizer) - set(trainer.eos_token_ids))
    if not missing or "eos_token_id" in (trainer.args.generation_kwargs or {}):
        return
    trainer.eos_token_ids = [*trainer.eos_token_ids, *missing]
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs.setdefault("stop_token_ids", missing)
    else:
        trainer.generation_config.eos_token_id = trainer.eos_token_ids
        trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids


def refuse_unequal_comparisons(trainer: Any) -> None:
    """Refuse settings of GRPO under which the trainer compares the model with another than the defenses do.

    Raises:
        RecipeError: a second divergence beside kl, or steered probabilities beside those that are not.
    """
    names = {label.split(".")[0] for label in trainer.guard.defenses}
    if trainer.beta > 0 and "kl" in names:
        raise RecipeError(
            f"beta={trainer.beta} is a second divergence, logged under the same name as kl. "
            "Set beta to 0, or take kl out."
        )
    if not trainer.guard.pulls("steer"):
        return
    if trainer.beta > 0:
        raise RecipeError(
            f"beta={trainer.beta} compares a steered model with a reference that the trainer does not steer, so a "
            "model that has not moved would be punished. Set beta to 0 and use kl, whose reference is steered."
        )
    if trainer._remembers_old_probabilities():
        raise RecipeError(
            "With these settings the trainer compares steered probabilities with old ones that are not steered. "
            "Set num_iterations to 1, steps_per_generation to gradient_accumulation_steps, and with vLLM "
            "vllm_importance_sampling_correction to false; or take steering out."
        )
