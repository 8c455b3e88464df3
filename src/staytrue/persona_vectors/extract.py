"""Persona vectors: how a model's activations differ between a trait's system prompts and their opposites.

Every question is put under every positive and every negative system prompt, `rollouts` times at temperature 1. The
i-th positive prompt's answer is paired with the i-th negative prompt's to the same question in the same rollout, and a
judge keeps a pair when the first shows the trait, the second does not, and both are coherent. Row L - 1 of the vectors
is then, for layer L (the output of block L, before the final norm), the mean over the kept positive answers minus the
mean over the kept negative ones; each answer is the mean over its own tokens. Not normalised; float32.

Positions: the answer's own tokens, each where it stands as input (where `Encoded.labels` is not -100), its end-of-turn
token included. No prompt token, so not the position that predicts the first answer token.

Paper: arXiv 2508.06249, preventative steering, after Chen et al. 2025 (their mean over response tokens, which has no
end-of-turn token). Not done here: means over the prompt or its last token; a judge for the trait itself: the trait is
taken to be misalignment (100 - alignment), which is what judges here score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from staytrue.data.chat_template import takes_system
from staytrue.data.special_in_answers import special_token_in
from staytrue.errors import ModelError, RequestError
from staytrue.evals.types import Judge
from staytrue.persona_vectors.kept_answers import KeptAnswers
from staytrue.persona_vectors.pairs import NoPairError, Pair, filtered, sample_pairs
from staytrue.persona_vectors.traits import Trait
from staytrue.persona_vectors.vectorfile import Extraction
from staytrue.utils.console import Progress

Tell = Callable[[str], None]  # prints a line about progress

TOKENS = 1000  # the longest answer, as in the paper


def extract(
    model: Any,
    tokenizer: Any,
    trait: Trait,
    judge: Judge | None,
    *,
    rollouts: int = 10,
    seed: int = 0,
    max_new_tokens: int = TOKENS,
    batch_size: int | None = None,
    progress: Progress | None = None,
    kept: KeptAnswers | None = None,
    tell: Tell = lambda line: None,
) -> Extraction:
    """Extract the vectors of a trait; without a judge every pair without an empty answer is kept.

    `batch_size` answers are written side by side; None for as many as memory allows. `progress` shows each answer.
    `kept` holds answers that were sampled before, and gets the others.

    Raises:
        RequestError: no pair survives the filter.
        ModelError: activations that are not finite, or do not differ.
    """
    from staytrue.evals.generation.local import LocalGenerator
    from staytrue.persona_vectors.activations import mean_states

    if kept is not None and kept.texts:
        tell(f"Goes on with {kept.file}; answers in it: {len(kept.texts):,}.")
    pairs = sample_pairs(
        LocalGenerator(model, tokenizer, batch_size=batch_size),
        trait,
        as_system=takes_system(tokenizer),
        rollouts=rollouts,
        seed=seed,
        max_new_tokens=max_new_tokens,
        progress=progress,
        kept=kept,
        tell=tell,
    )
    readable = [pair for pair in pairs if not _spells_special_tokens(tokenizer, pair)]
    if len(readable) < len(pairs):
        many = f"{len(pairs) - len(readable)} of {len(pairs)} pairs"
        tell(f"{many} have an answer that spells a token of the template, and are left out.")
    chosen = _filtered(readable, judge, progress, kept)
    tell(f"{len(chosen)} of {len(pairs)} pairs kept; reading their activations")
    if progress is not None:
        progress.begin(2 * len(chosen), "activations of answer")

    def count(before: int, done: int) -> None:
        if progress is not None:
            progress.step(before + done, {})

    positive, lengths = mean_states(model, tokenizer, [pair.positive for pair in chosen], partial(count, 0))
    negative, others = mean_states(model, tokenizer, [pair.negative for pair in chosen], partial(count, len(chosen)))
    vectors = (positive - negative).float()
    if not bool(vectors.isfinite().all()) or not bool(vectors.abs().sum(-1).all()):
        raise ModelError(
            "The activations of the two sides are not finite, or do not differ. Write prompts that change the answers "
            "more."
        )
    return Extraction(vectors, tuple(((lengths + others) / 2).tolist()), len(pairs), len(chosen))


def _spells_special_tokens(tokenizer: Any, pair: Pair) -> bool:
    """Whether an answer's text would be read as another one than the model wrote."""
    return any(special_token_in(tokenizer, row) is not None for row in (pair.positive, pair.negative))


def _filtered(
    pairs: Sequence[Pair], judge: Judge | None, progress: Progress | None, kept: KeptAnswers | None
) -> list[Pair]:
    """The pairs that the judge keeps; where it keeps none, the sentence names the file with the answers."""
    try:
        return filtered(pairs, judge, progress)
    except NoPairError as error:
        if kept is None:
            raise
        raise RequestError(
            f"{error} The answers are kept in {kept.file}: the same command with another --judge, or with --no-filter "
            "in its place, reads them again, without sampling."
        ) from None
