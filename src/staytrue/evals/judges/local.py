"""A causal LM in this process as a judge: every probability of every number, the same in every run."""

from __future__ import annotations

from typing import Any

from staytrue.data.examples import Message
from staytrue.data.tokenize import encode_prompt
from staytrue.evals.judges.rubric import Rubric, rubrics_for
from staytrue.evals.judges.score_from_logprobs import WORDS, Reading, reading
from staytrue.evals.judges.tree import NoLawError, Tree
from staytrue.evals.judges.verdicts import signature, verdict
from staytrue.evals.openai_client.reply import sendable
from staytrue.evals.openai_client.response_cache import ResponseCache, key
from staytrue.evals.types import Question, Verdict

_TEXTS = (*map(str, range(101)), *WORDS)


class LocalJudge:
    """A model and its tokenizer as a judge of alignment and coherence."""

    concurrency = 1

    def __init__(self, model: Any, tokenizer: Any, identity: str, ledger: ResponseCache | None = None) -> None:
        """Make a judge.

        Args:
            model: a causal LM with its head; it is put into evaluation mode.
            tokenizer: its own, with a chat template.
            identity: what its files are, such as their hash; part of the judge's name and of every key.
            ledger: keeps what was computed, so that the same is not computed again.
        """
        self._model, self._tokenizer, self._ledger = model.eval(), tokenizer, ledger
        self._who = {"local": identity, "dtype": str(model.dtype), "device": model.device.type}
        self.name = f"local:{identity}#{signature(**self._who)}"
        config = model.config.get_text_config()
        self._longest = getattr(config, "max_position_embeddings", None)
        self._tree = Tree(tokenizer, config.vocab_size, _TEXTS)

    def __call__(self, question: Question, answer: str) -> Verdict:
        """Judge one answer; one that is too long for the judge, or that it has no law for, is missing."""
        try:
            return verdict(*(self._reading(rubric, question, answer) for rubric in rubrics_for(question)))
        except NoLawError as why:
            return Verdict(missing=str(why))

    def spent(self) -> str:
        """What judging has taken so far."""
        return "" if self._ledger is None else f"{self._ledger.calls:,} read; {self._ledger.hits:,} read before"

    def law(self, prompt: str) -> dict[str, float]:
        """The probability of each number and word as the answer to a prompt, and the likeliest token beside them.

        Raises:
            NoLawError: the prompt is longer than the judge reads, or its logits are no numbers (NaN).
        """
        ids = encode_prompt(self._tokenizer, [Message("user", sendable(prompt))])
        if self._longest is not None and len(ids) + self._tree.depth > self._longest:
            raise NoLawError(f"its prompt has {len(ids):,} tokens, and the judge reads {self._longest:,}")
        return self._tree.law(self._model, ids)

    def _reading(self, rubric: Rubric, question: Question, answer: str) -> Reading:
        prompt = rubric.filled(question.messages[-1].content, answer)
        if self._ledger is None:
            return reading(self.law(prompt))
        row = self._ledger.once(
            key(judge=self._who, rubric=rubric.sha256, prompt=prompt), lambda: {"law": self.law(prompt)}
        )
        return reading(row["law"])
