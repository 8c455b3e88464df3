"""`WeightedPenalties`: the penalties of one run with their weights, counted for each optimizer step, and logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast, get_args

import torch
from torch import Tensor

from staytrue.defense import Base, Defense, pulled
from staytrue.modeling.architecture import ModelParts
from staytrue.step import SOURCES, Marks, SharedProjection, Step, Tokens, positions_of
from staytrue.training.auxiliary_batches import AuxiliaryBatches
from staytrue.training.hooks import RecordedCall
from staytrue.training.observer import Observer
from staytrue.training.penalty_log import PenaltyLog
from staytrue.training.penalty_steps import PenaltySteps
from staytrue.training.separate_gradients import SeparateGradients


class WeightedPenalties:
    """The penalties of one run: `plan` an optimizer step, add up those `of_micro_batch`, `combine` their gradients.

    Args:
        defenses: of the run, by label.
        weights: returns the trained weights.

    Attributes:
        by_label: the defenses that have a penalty.
        auxiliary: the rows that defenses feed beside the batch.
        steps: what penalties see of a micro-batch; None until they are attached to a model, or without a penalty.
        measured: the penalties that have a position in the present optimizer step.
        observer: is shown every penalty and every gradient before a defense combines it; None for no evidence.
    """

    def __init__(self, defenses: Mapping[str, Defense], weights: Callable[[], Sequence[Tensor]]) -> None:
        self.by_label = {label: defense for label, defense in defenses.items() if "penalty" in pulled(defense)}
        self.auxiliary = AuxiliaryBatches({}, 0)
        self.steps: PenaltySteps | None = None
        self._states: dict[str, object] = {}
        self.measured: set[str] = set()
        self.observer: Observer | None = None
        self._log, self._in_loss = PenaltyLog(), PenaltyLog()
        self._totals = torch.zeros(len(SOURCES), 2)
        self._separate = SeparateGradients(defenses, weights)

    @property
    def read_states(self) -> bool:
        """Whether any penalty compares with the reference model's states."""
        return any(defense.reads_reference for defense in self.by_label.values())

    @property
    def read_reference(self) -> bool:
        """Whether any penalty reads the reference model: its states, or its weights."""
        return any(defense.reads_reference or defense.reads_start for defense in self.by_label.values())

    def attach(self, parts: ModelParts, base: Base, auxiliary: AuxiliaryBatches, steps: PenaltySteps | None) -> None:
        """Let each penalty prepare itself for the model, and take what penalties see there.

        Args:
            parts: of the trained model.
            base: the untouched model.
            auxiliary: the rows that defenses feed beside the batch.
            steps: what penalties see of a micro-batch; None without a penalty.
        """
        self.auxiliary, self.steps = auxiliary, steps
        self._states = {label: defense.prepare(parts, base) for label, defense in self.by_label.items()}

    def begin(self) -> None:
        """Begin training, or continue; nothing is logged yet."""
        self._log, self._in_loss = PenaltyLog(), PenaltyLog()
        self._separate.clear()

    def plan(self, totals: Tensor, before: int, after: int, slots: int) -> None:
        """Begin an optimizer step.

        Args:
            totals: (len(SOURCES), 2), the sum of `Marks.counts` over the whole step.
            before: how many task rows were trained on before the step.
            after: how many will have been after it.
            slots: micro-batches times processes; auxiliary rows are distributed over them in turn.
        """
        self.auxiliary.plan(before, after, slots)
        self._totals = totals
        self._separate.begin_step()
        counts = totals.cpu()
        self.measured = {label for label in self.by_label if self._has_positions(label, counts)}
        self._log.begin_step(self.measured)
        self._in_loss.begin_step(list(self.by_label))

    def _has_positions(self, label: str, totals: Tensor) -> bool:
        """Whether the optimizer step holds a position that this penalty is a mean over."""
        if label in self.auxiliary:
            return bool(self.auxiliary.due(label))
        defense = self.by_label[label]
        named = getattr(defense, "tokens", "all")  # a defense of a user's own may mean something else by it
        tokens = cast(Tokens, named) if named in get_args(Tokens) else "all"
        return bool(positions_of(totals, defense.on, tokens))

    def of_micro_batch(
        self, call: RecordedCall, marks: Marks, slot: int | None, shared: SharedProjection | None
    ) -> Tensor | None:
        """Compute the sum of the weighted penalties of one micro-batch (), in nats; None if no defense has a penalty.

        Args:
            call: the trainer's own forward.
            marks: of the same micro-batch.
            slot: which of the step's slots it is; None for one of no planned step, whose penalties are means over
                itself, without auxiliary rows, not logged and not kept apart for `combine`.
            shared: the trainer's own head, where a divergence may share its pass.

        Raises:
            ForwardPassError: the forward read a batch of another shape.
        """
        if not self.by_label:
            return None
        assert self.steps is not None  # attached
        call.check_shape(marks)
        totals = self._totals if slot is not None else marks.counts()
        step = self.steps.of_batch(call, marks, totals, shared)
        total = call.final.new_zeros((), dtype=torch.float32) if call.final is not None else torch.zeros(())
        auxiliary, filler = ({}, None) if slot is None else self.steps.of_auxiliary_rows(call, slot, totals)
        if filler is not None:  # part of the loss, so that its backward pass, in which FSDP2 gathers too, is made
            total = total + 0 * filler.float().sum()
        for label in self.by_label:
            seen = auxiliary.get(label) if label in self.auxiliary else step
            if seen is not None:  # else no row of its own is due in this micro-batch
                total = total + self._weighted(label, seen, planned=slot is not None)
        return total

    def _weighted(self, label: str, step: Step, *, planned: bool) -> Tensor:
        """Compute one defense's weighted penalty; of a planned step also log it, and keep it apart for `combine`."""
        defense, step.state = self.by_label[label], self._states[label]
        value = defense.penalty(step)
        notes = {f"{label}/{name}": number for name, number in step.notes.items()}
        step.notes.clear()
        weighted = defense.weight * self.auxiliary.rarity(label) * value
        if not planned:
            return weighted
        if self.observer is not None:
            self.observer.evaluated(label, value)
        for name, number in {label: value, **notes}.items():
            self._log.add(name, number)
        self._in_loss.add(label, weighted)
        return self._separate.keep(label, weighted)

    def combine(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Let defenses change the optimizer step's gradient in place; `add_up` sums a tensor over processes."""
        self._separate.combine(add_up, None if self.observer is None else self.observer.combining)

    def drain(self) -> dict[str, Tensor]:
        """Return each penalty's unweighted number since the last call: a mean over the steps that measured it."""
        return self._log.drain()

    def drain_weighted(self) -> dict[str, Tensor]:
        """Return each penalty's part of the loss since the last call: with its weight, a mean over the steps."""
        return self._in_loss.drain()
