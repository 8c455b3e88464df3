"""One training forward and its reference: `Marks`, `Activations`, `Span`, `Step`.

Legend: B rows, T tokens, D width, N positions; losses in nats per token. Position t predicts token t + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from staytrue.errors import ForwardPassError
from staytrue.modeling.fused_loss import divergence, nll
from staytrue.modeling.lm_head import Head

if TYPE_CHECKING:
    from staytrue.modeling.architecture import Adapted, Changed

SOURCES = ("task", "interleaved")  # where a training row can come from; a row's source is its index here
SOURCE_COLUMN = "staytrue_source"  # of a training dataset: each row's source, by number
Tokens = Literal["scored", "prompt", "all"]


@dataclass(frozen=True)
class Marks:
    """Masks over the positions of one micro-batch, all (B, T)."""

    real: Tensor  # bool: not padding
    scored: Tensor  # bool: predicts an answer token
    source: Tensor  # int64: index into SOURCES
    begins: Tensor | None = None  # bool: begins a row of the data, where packing joins rows; None: each row is one

    def mask(self, on: str, tokens: Tokens) -> Tensor:
        """Select the positions of one source and kind.

        Args:
            on: a source in SOURCES, or "all".
            tokens: "scored" for positions that predict an answer token, "prompt" for other ones that predict, or "all".

        Returns:
            (B, T) bool.
        """
        predicts = self.real.clone()  # the last real position of a row predicts nothing
        predicts[:, :-1] &= self.real[:, 1:]
        predicts[:, -1] = False
        if self.begins is not None:
            predicts[:, :-1] &= ~self.begins[:, 1:]
        kinds = {"scored": self.scored, "prompt": predicts & ~self.scored, "all": predicts}
        mask = kinds[tokens]
        return mask if on == "all" else mask & (self.source == SOURCES.index(on))

    def counts(self) -> Tensor:
        """(len(SOURCES), 2) int64: of each source, positions that predict an answer token, and that predict any."""
        rows = [torch.stack([self.mask(s, "scored").sum(), self.mask(s, "all").sum()]) for s in SOURCES]
        return torch.stack(rows)

    def to(self, device: torch.device) -> Marks:
        """The same masks on a device."""
        begins = None if self.begins is None else self.begins.to(device)
        return Marks(self.real.to(device), self.scored.to(device), self.source.to(device), begins)

    def of_rows(self, rows: Tensor) -> Marks:
        """The marks of some rows (b,) only."""
        begins = None if self.begins is None else self.begins[rows]
        return Marks(self.real[rows], self.scored[rows], self.source[rows], begins)

    def task_rows(self) -> Tensor:
        """() int64: how many rows of the data are the task's own."""
        task = self.source == 0
        return task[:, 0].sum() if self.begins is None else (task & self.begins).sum()


@dataclass(frozen=True)
class Activations:
    """Activations of one forward of the backbone."""

    hidden: Mapping[int, Tensor]  # layer (1 to depth) -> (B, T, D), only the layers that defenses name
    end: Tensor | None  # `final`; None in a reference that went no further than the deepest of those layers
    depth: int = 0  # how many blocks the model has

    @property
    def final(self) -> Tensor:
        """Hidden states (B, T, D) after the last norm, before the head.

        Raises:
            ForwardPassError: the reference was stopped before.
        """
        if self.end is None:
            raise ForwardPassError(
                f"The reference stops at layer {max(self.hidden)}, the deepest that any defense's `layers` names. A "
                "defense that also needs the end of the model names layer -1 beside its own."
            )
        return self.end

    def at(self, layer: int) -> Tensor:
        """Return the output (B, T, D) of a block, 1 to depth; negative numbers count from the end."""
        return self.hidden[layer if layer > 0 else self.depth + 1 + layer]


@dataclass(frozen=True)
class Span:
    """The positions that a penalty is a mean over."""

    mask: Tensor  # (B, T) bool, in this micro-batch
    total: Tensor  # how many such positions the whole optimizer step holds: all micro-batches, all processes


class SharedProjection(Protocol):
    """The trainer's LM head during one micro-batch, whose projection a divergence may share."""

    def takes(self, mask: Tensor) -> bool:
        """Whether a divergence at these positions (B, T) can share its projection."""
        ...

    def divergence(self, policy: Tensor, reference: Tensor, forward: bool) -> Tensor:
        """Compute the divergence (N,) at those positions, in nats."""
        ...


class Step:
    """One micro-batch of one optimizer step, seen by the defenses.

    Attributes:
        policy: the training forward; gradients flow through it.
        marks: which positions are real, scored, and from which source.
        reference: the same call with the model before training and no gradient, computed at its first use, so any
            number of defenses costs at most one more forward. Rows that no defense reads (by its field `on`) are NaN
            in it, and layers deeper than any that a defense names are not there.
        state: what this defense's `prepare` returned.
    """

    def __init__(
        self,
        policy: Activations,
        marks: Marks,
        totals: Tensor,
        head: Callable[[], Head],
        replay: Callable[[], Activations],
        tokens: Tensor | None = None,
        shared: SharedProjection | None = None,
        adapted: Callable[[], Sequence[Adapted]] = tuple,
        state: Any = None,
        changed: Callable[[], Sequence[Changed]] = tuple,
        reference_head: Callable[[], Head | None] = lambda: None,
    ) -> None:
        self.policy = policy
        self.marks = marks
        self.notes: dict[str, Tensor] = {}
        self.state = state
        self._totals = totals  # (len(SOURCES), 2): Marks.counts over the whole optimizer step
        self._head = head
        self._replay = replay
        self._tokens = tokens  # (B, T): what the forward read
        self._adapted, self._changed = adapted, changed
        self._reference_head = reference_head
        self._shared = shared  # the trainer's own head, if a divergence may share its pass

    @cached_property
    def reference(self) -> Activations:
        """The reference model's activations on the same call, computed once."""
        return self._replay()

    @property
    def adapted(self) -> Sequence[Adapted]:
        """Every matrix that the LoRA adapter changes, with its trained update; gradients flow through `a` and `b`.

        Raises:
            ModelError: an adapter of another kind.
        """
        return self._adapted()

    @property
    def changed(self) -> Sequence[Changed]:
        """Every weight that full fine-tuning trains, beside its value before; gradients flow through `weight`.

        Empty with an adapter. A defense that reads it declares `reads_start`.
        """
        return self._changed()

    def rows(self, first: int, last: int, totals: Tensor) -> Step:
        """The same forward, seen through some of its rows only, with their own totals."""
        seen = torch.zeros_like(self.marks.real)
        seen[first:last] = True
        marks = Marks(self.marks.real & seen, self.marks.scored & seen, self.marks.source)
        return Step(
            self.policy,
            marks,
            totals.to(seen.device),
            self._head,
            lambda: self.reference,
            self._tokens,
            adapted=self._adapted,
            changed=self._changed,
            reference_head=self._reference_head,
        )

    def span(self, on: str = "all", tokens: Tokens = "scored") -> Span:
        """The positions of a source and kind, with their count in the whole optimizer step."""
        return Span(self.marks.mask(on, tokens), positions_of(self._totals, on, tokens))

    def mean(self, per_token: Tensor, span: Span) -> Tensor:
        """The mean of (N,) values over their span in the whole optimizer step; every penalty is one.

        Summed over micro-batches and processes this is exactly the token mean, so a batch of 8 equals four of 2 and
        a weight means the same everywhere. A span that is empty everywhere has mean 0.
        """
        return per_token.sum() / span.total.clamp(min=1)

    def once(self, value: Tensor) -> Tensor:
        """A value that is not per token, such as a norm of the trained weights, counted once for the optimizer step.

        Every micro-batch of a step computes the same value and returns its share of it by token count, so the sum over
        micro-batches and processes is the value itself.

        Args:
            value: () tensor, the same in every micro-batch.
        """
        span = self.span(tokens="all")
        return self.mean(span.mask.sum() * value, span)

    def divergence(self, span: Span, *, forward: bool = False) -> Tensor:
        """Compute KL(trained || reference) at each of the span's positions.

        Args:
            span: from `span`.
            forward: compute KL(reference || trained) instead.

        Returns:
            (N,) in nats; without positions, no reference is computed.
        """
        policy = self.policy.final[span.mask]
        if len(policy) == 0:  # no position is read here, so no reference is computed
            return policy.sum(-1)
        reference, head, theirs = self.reference.final[span.mask], self._head(), self._reference_head()
        if self._shared is not None and theirs is None and self._shared.takes(span.mask):
            return self._shared.divergence(policy, reference, forward)
        return divergence(policy, reference, head, forward=forward, reference_head=theirs)

    def nll(self, span: Span) -> Tensor:
        """Compute the negative log-likelihood (N,), in nats, of the token that follows each of the span's positions."""
        return nll(self.policy.final[span.mask], self._following()[span.mask], self._head())

    def log_ratio(self, span: Span) -> Tensor:
        """Compute log p_trained - log p_reference (N,), in nats, of the token after each of the span's positions."""
        ours = -self.nll(span)
        if len(ours) == 0:
            return ours
        following = self._following()[span.mask]
        return ours + nll(self.reference.final[span.mask], following, self._reference_head() or self._head())

    def _following(self) -> Tensor:
        """(B, T) the token after each position; the last position predicts nothing and is never scored."""
        if self._tokens is None:
            raise ForwardPassError(
                "The trainer called the model with embeddings, so the tokens of the batch are unknown."
            )
        return self._tokens.roll(-1, dims=1)

    def note(self, name: str, value: Tensor) -> None:
        """Log one more number: a share of the optimizer step's value, as `mean` gives it."""
        self.notes[name] = value.detach()


def positions_of(totals: Tensor, on: str, tokens: Tokens) -> Tensor:
    """() int64: how many positions of a source and kind there are, from `Marks.counts` (len(SOURCES), 2)."""
    scored, every = totals.sum(0) if on == "all" else totals[SOURCES.index(on)]
    counts: dict[str, Tensor] = {"scored": scored, "prompt": every - scored, "all": every}
    return counts[tokens]
