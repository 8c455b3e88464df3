"""`make`: a vector file, from a `Request` with the options of `staytrue vector`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from staytrue.errors import ModelError, RequestError
from staytrue.evals.questions.answer_pairs import EARLY_STOPPING, shipped
from staytrue.evals.types import ChecksItself, Judge
from staytrue.persona_vectors import pair_sweep, sweep, vectorfile
from staytrue.persona_vectors.extract import TOKENS, Tell, extract
from staytrue.persona_vectors.kept_answers import KeptAnswers, file_beside
from staytrue.persona_vectors.traits import Trait
from staytrue.persona_vectors.vectorfile import Extraction
from staytrue.utils.console import Progress
from staytrue.utils.files import refuse_existing, sha256_of
from staytrue.utils.run_dir import SCHEMA, versions

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
    limit = request.max_new_tokens or (_ORGANISM_TOKENS if source.is_organism else TOKENS)
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
