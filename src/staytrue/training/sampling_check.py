"""`sample_one_token` tries GRPO's sampling settings, at which transformers would fail in the first step only."""

from __future__ import annotations

import copy
from typing import Any

import torch

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
