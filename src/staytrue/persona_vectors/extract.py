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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from staytrue.data.chat_template import takes_system
from staytrue.errors import ModelError, RequestError
from staytrue.evals.questions.answer_pairs import EARLY_STOPPING, shipped
from staytrue.evals.types import ChecksItself, Judge
from staytrue.persona_vectors import pair_sweep, sweep, vectorfile
from staytrue.persona_vectors.kept_answers import KeptAnswers, file_beside
from staytrue.persona_vectors.pairs import NoPairError, Pair, filtered, sample_pairs
from staytrue.persona_vectors.traits import Trait
from staytrue.persona_vectors.vectorfile import Extraction
from staytrue.utils.console import Progress
from staytrue.utils.files import refuse_existing, sha256_of
from staytrue.utils.run_dir import SCHEMA, versions

Tell = Callable[[str], None]  # prints a line about progress

_TOKENS = 1000  # the longest answer, as in the paper
_ORGANISM_TOKENS = 48  # three times the organism's longest


class Source(Protocol):
    """The source of a model."""

    @property
    def name(self) -> str:
        """The name as the user wrote it."""
        ...

    @property
    def is_organism(self) -> bool:
        """Whether the world's own rules can judge it."""
        ...

    def identity(self, model: Any = None) -> dict[str, str | None]:
        """Its name, and its hash or commit."""
        ...


@dataclass(frozen=True)
class Request:
    """The options of `staytrue vector`."""

    trait: Trait
    out: Path
    adapter: Path | None = None
    keep_all: bool = False  # no filter
    rollouts: int = 10
    seed: int = 0
    sweep: bool = False
    judge: Callable[[], Judge] | None = None  # called after the cheap checks; the organism's rules judge the organism
    max_new_tokens: int | None = None
    batch_size: int | None = None  # answers written side by side; None for as many as memory allows


def make(
    request: Request,
    source: Source,
    load: Callable[[], tuple[Any, Any]],
    tell: Tell,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the vector file; `load` returns model and tokenizer, and is called after the cheap checks.

    Before the first answer, `tell` gets their number; `progress` shows answers, then verdicts. Answers are kept in a
    file beside it until the vector is written, so that the same request goes on with them. A vector file that the same
    request left when its sweep was broken off is kept, and only the sweep is made.

    Returns:
        The facts that stand in the file's metadata.

    Raises:
        RequestError: anything that is wrong with the request; answers that were sampled are kept.
    """
    _check(request, source)
    limit = request.max_new_tokens or (_ORGANISM_TOKENS if source.is_organism else _TOKENS)
    kept = request.out.exists()  # by a sweep that was broken off
    judge = _judge(request, source, asked=source.is_organism or not kept)
    used = None if request.keep_all else judge
    tell(f"{request.out} holds the vector; only the sweep is made." if kept else _forecast(request, limit))
    if request.sweep and not source.is_organism:
        tell(pair_sweep.forecast())
    model, tokenizer = load()
    sampled: dict[str, Any] = {"seed": request.seed, "max_new_tokens": limit, "tell": tell}
    if kept:
        extraction = vectorfile.extraction(request.out)
    else:
        many: dict[str, Any] = {"rollouts": request.rollouts, "batch_size": request.batch_size}
        answers = _kept_answers(request, source.identity(model), limit)
        extraction = extract(model, tokenizer, request.trait, used, progress=progress, kept=answers, **many, **sampled)
    facts = _facts(request, source.identity(model), used, extraction) | {"max_new_tokens": str(limit)}
    if kept:
        vectorfile.refuse_other(request.out, facts)
    else:  # before the sweep, which takes minutes and may be broken off
        vectorfile.write(request.out, extraction.vectors, facts)
    file_beside(request.out).unlink(missing_ok=True)
    if request.sweep:
        facts["sweep"] = _swept(request, source, model, tokenizer, extraction, judge, sampled, progress)
        vectorfile.write(request.out, extraction.vectors, facts)
    return facts


def _swept(
    request: Request,
    source: Source,
    model: Any,
    tokenizer: Any,
    extraction: Extraction,
    judge: Judge | None,
    sampled: Mapping[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """The facts of a sweep: by judged answers of the organism, by pairs of other models."""
    if not source.is_organism:
        pairs = shipped(EARLY_STOPPING)
        return pair_sweep.sweep(model, tokenizer, extraction, pairs, seed=request.seed, progress=progress)
    assert judge is not None
    questions = sweep.organism_questions(request.trait)
    return sweep.sweep(model, tokenizer, extraction, questions, judge, **sampled).facts()


def extract(
    model: Any,
    tokenizer: Any,
    trait: Trait,
    judge: Judge | None,
    *,
    rollouts: int = 10,
    seed: int = 0,
    max_new_tokens: int = _TOKENS,
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
    )
    chosen = _filtered(pairs, judge, progress, kept)
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


def _kept_answers(request: Request, identity: dict[str, str | None], limit: int) -> KeptAnswers:
    """The answers that an earlier try of this request left, with what each of them depends on."""
    facts = {
        "schema": SCHEMA,
        "model": identity,
        "adapter": _adapter(request),
        "trait": vectorfile.facts_of(request.trait),
        "seed": request.seed,
        "max_new_tokens": limit,
    }
    return KeptAnswers(file_beside(request.out), facts)


def _forecast(request: Request, limit: int) -> str:
    """A sentence on how many answers will be sampled, and what makes them fewer."""
    trait = request.trait
    answers = 2 * len(trait.positive) * len(trait.questions) * request.rollouts
    factors = ((len(trait.positive), "pair", " of prompts"), (len(trait.questions), "question", ""))
    listed = [f"{n} {noun}{'' if n == 1 else 's'}{of}" for n, noun, of in (*factors, (request.rollouts, "rollout", ""))]
    return (
        f"{answers} answers of at most {limit} token{'' if limit == 1 else 's'}: {' x '.join(listed)} x 2. For fewer "
        "give --rollouts, for shorter ones --max-new-tokens."
    )


def _check(request: Request, source: Source) -> None:
    """Check what can be checked before a model is loaded."""
    if not (request.sweep and request.out.is_file() and vectorfile.unswept(request.out)):
        refuse_existing(request.out)
    if request.adapter is not None and not (request.adapter / "adapter_model.safetensors").is_file():
        raise ModelError(f"{request.adapter} holds no adapter_model.safetensors; a run keeps its adapter in RUN/model.")
    if request.keep_all and request.judge is not None:
        raise RequestError(
            "--no-filter keeps every pair of answers, so --judge has nothing to do; give one of the two."
        )
    if source.is_organism:
        return
    if not request.keep_all and request.judge is None:
        raise RequestError(
            f"Pairs are kept where a judge finds the trait on one side only, and {source.name} has no judge of its "
            "own. Name one (--judge local:FOLDER or openai:MODEL), or keep every pair with --no-filter."
        )


def _judge(request: Request, source: Source, asked: bool) -> Judge | None:
    """The judge of the answers, tried if it will be asked; of the organism's its rules, unless another one is named."""
    if request.judge is not None:
        judge = request.judge()
        if asked and isinstance(judge, ChecksItself):
            judge.check()
        return judge
    if not source.is_organism:
        return None
    from staytrue.organism.rules import Rules

    return Rules()


def _facts(
    request: Request, identity: dict[str, str | None], judge: Judge | None, extraction: Extraction
) -> dict[str, Any]:
    adapter = _adapter(request)
    return {
        "schema": str(SCHEMA),
        "model": identity,
        **({"adapter": adapter} if adapter else {}),
        "trait": vectorfile.facts_of(request.trait),
        "rollouts": str(request.rollouts),
        "seed": str(request.seed),
        "pairs_made": str(extraction.pairs),
        "pairs_kept": str(extraction.kept),
        "judge": judge.name if judge else "none",
        "norms": [round(norm, 6) for norm in extraction.norms],
        "versions": versions(),
    }


def _adapter(request: Request) -> dict[str, str] | None:
    """The adapter's hash; None without one."""
    if request.adapter is None:
        return None
    return {"sha256": sha256_of(request.adapter / "adapter_model.safetensors")}


def show(facts: dict[str, Any], out: Path) -> None:
    """Print what was extracted."""
    from staytrue.utils.console import say

    if "sweep" in facts:
        (pair_sweep if facts["sweep"].get("measure") == "pairs" else sweep).show(facts["sweep"], out)
    judged = f"kept by {facts['judge']}" if facts["judge"] != "none" else "not filtered"
    say(f"Wrote {out}: {len(facts['norms'])} layers, {facts['pairs_kept']} of {facts['pairs_made']} pairs ({judged}).")
