"""`Guard`: the defenses of one run, attached to one model. It knows no trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded
from staytrue.defense import Base, Defense, pulled
from staytrue.errors import ForwardPassError
from staytrue.modeling import quantized
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.choose_reference import reference_of
from staytrue.modeling.reference_model import AdapterOff
from staytrue.registry import labelled, refuse_supervised_rows
from staytrue.step import Marks, SharedProjection
from staytrue.training.auxiliary_batches import AuxiliaryBatches, Encode, make_rows
from staytrue.training.defense_fit import checked_layers, freeze_and_check
from staytrue.training.frozen_blocks import thaw
from staytrue.training.hooks import BackboneHooks, RecordedCall, ReferenceReplay
from staytrue.training.observer import Observer
from staytrue.training.penalty_steps import PenaltySteps
from staytrue.training.projection import project
from staytrue.training.reference import model_checks
from staytrue.training.reference.cache import ReferenceCache
from staytrue.training.reference.cache_checks import refuse_cache, refuse_reference
from staytrue.training.weighted_penalties import WeightedPenalties
from staytrue.utils.console import Progress


class Guard:
    """The defenses of one run.

    The order of a run: `curate` the examples, `attach` to the model, then for every optimizer step `plan`, and for
    every micro-batch `watch` the trainer's own forward and add `penalty`; `drain` the numbers when logging, and
    `project` after the last step.

    Args:
        defenses: in listed order.
        seed: seeds all that the defenses sample or draw.
        sampled: whether the model samples the answers that it is trained on, as in GRPO.
        reference_cache: a folder that stores the reference's hidden states by row; see `reference.cache`.
        max_length: number of tokens at which auxiliary rows are cut, for a trainer without a `max_length` of its own.
        reference: which model is the reference, see `modeling.choose_reference`; None is the model before training.

    Attributes:
        task_rows: how many rows of the task have been trained on.
        reference: the reference model, once attached to a model.
        float32_adapter: whether an adapter on quantised weights is trained in float32, where trl rounds it to bfloat16.
        shards: among how many processes the weights are divided (FSDP2). Each of these makes every forward with the
            others, also one that none of its own rows needs. 0 where each has the whole model.
        measured: the penalties that have a position in the present optimizer step.
        observer: is shown every penalty and every gradient before a defense combines it; None for no evidence.
        cache: the stored states, once attached to a model; None without a folder, or if no defense reads the reference.

    Raises:
        RequestError: a defense overrides no lever or lacks the field that its levers need; `reference_cache` is no
            folder, or these defenses cannot use it.
    """

    def __init__(
        self,
        defenses: Sequence[Defense],
        seed: int = 0,
        reference_cache: Path | str | None = None,
        *,
        sampled: bool = False,
        max_length: int | None = None,
        reference: Any = None,
    ) -> None:
        self.chosen_reference = reference
        self.seed, self.sampled, self.max_length = seed, sampled, max_length
        self.defenses = labelled(defenses)
        self.reference_cache = None if reference_cache is None else Path(reference_cache)
        self.cache: ReferenceCache | None = None
        if self.reference_cache is not None:
            refuse_cache(self.reference_cache, self.defenses, sampled=sampled, reference=reference)
        self._penalties = WeightedPenalties(self.defenses, self._trained)
        refuse_reference(reference, self._penalties.by_label)
        self._base: Base | None = None
        self.task_rows = 0
        self.float32_adapter = False
        self.shards = 0

    @property
    def is_for_others(self) -> bool:
        """Whether the present forward is one that only other processes need, where weights are divided."""
        return self._penalties.steps is not None and self._penalties.steps.is_for_others

    @property
    def measured(self) -> set[str]:
        """The penalties that have a position in the present optimizer step."""
        return self._penalties.measured

    @property
    def observer(self) -> Observer | None:
        """What is shown every penalty, and every gradient before a defense combines it."""
        return self._penalties.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._penalties.observer = observer

    def pulls(self, lever: str) -> bool:
        """Return whether any defense overrides that lever."""
        return self.pulling(lever) > 0

    def pulling(self, lever: str) -> int:
        """Count the defenses that override that lever."""
        return sum(lever in pulled(d) for d in self.defenses.values())

    def curate(self, examples: list[Example], base: Base) -> list[Example]:
        """Return the training rows after every defense, in listed order, has edited or added to them.

        Raises:
            RecipeError: the model samples its answers, and a defense adds rows with fixed answers.
        """
        if self.sampled:
            refuse_supervised_rows(self.defenses)
        self._base = base
        for defense in self.defenses.values():
            examples = defense.curate(examples, base, self.seed)
        return examples

    def attach(self, model: Any, base: Base, encode: Encode, pad_id: int, task_rows: int | None = None) -> None:
        """Check the model, attach the hooks, and make the auxiliary rows.

        Args:
            model: the model with its adapter, or one whose own weights are trained.
            base: the untouched model, unless another one has curated the training rows.
            encode: makes tokens of auxiliary rows.
            pad_id: the token that they are padded with.
            task_rows: how many task rows the run trains on, counting repeats; None where that is not known.

        Raises:
            ModelError: the model has no reference, no such layer, or a head staytrue cannot compute.
        """
        self.parts = parts = ModelParts(model)
        quantized.keep_gradients(model)
        base = self._base or base  # the one that curated knows what the run will be measured by
        if task_rows is not None:
            base.task_rows = task_rows
        kept, steers = checked_layers(parts, self.defenses, base, self.chosen_reference)
        head = model_checks.head(parts) if self._penalties.by_label else None
        with ExitStack() as undo:  # of what is refused below nothing stays on the model
            self._frozen = freeze_and_check(parts, self.defenses, base)
            undo.callback(thaw, self._frozen)
            self.reference: AdapterOff = self._reference_of(base)
            self._hooks = BackboneHooks(parts, kept, steers, self.reference)
            undo.callback(self._hooks.remove)
            replay = self._replay(kept)
            rows = make_rows(self.defenses, base, encode, self.seed)
            auxiliary, steps = AuxiliaryBatches(rows, pad_id), None
            if head is not None:
                steps = PenaltySteps(
                    parts, self.defenses, auxiliary, self._hooks, self.reference, replay, head, self.shards
                )
            self._penalties.attach(parts, base, auxiliary, steps)
            undo.pop_all()

    def _reference_of(self, base: Base) -> AdapterOff:
        """The reference, which answers the prompts of the defenses' own rows too where the user chose it."""
        read = self._penalties.read_reference
        choice = self.chosen_reference if read else None
        reference = reference_of(self.parts, read=read, choice=choice)
        if choice is not None:
            base.use(reference)
        return reference

    def _replay(self, kept: list[int]) -> ReferenceReplay:
        """What repeats a forward with the reference: the hooks, or the cache in place of them."""
        if self.reference_cache is None or not self._penalties.read_states:
            return self._hooks.replay
        self.cache = ReferenceCache(self.reference_cache, self._hooks, self.reference.parts, kept)
        return self.cache.replay

    def check(self, model: Any, base: Base, encode: Encode) -> None:
        """Refuse what `attach` would refuse of a model without weights, on torch's "meta" device; attach nothing.

        Args:
            model: with its adapter.
            base: answers prompts in place of the untouched model, and knows how many task rows there are.
            encode: makes tokens of auxiliary rows.

        Raises:
            RequestError: a layer that the model does not have, a defense that does not fit it, or faults of its rows.
        """
        self.parts = ModelParts(model)
        checked_layers(self.parts, self.defenses, base, self.chosen_reference)
        thaw(freeze_and_check(self.parts, self.defenses, base))
        make_rows(self.defenses, base, encode, self.seed)

    def auxiliary_rows(self) -> dict[str, Sequence[Encoded]]:
        """Return the rows that each defense feeds beside the batch, once attached."""
        return self._penalties.auxiliary.rows()

    def begin(self, task_rows: int) -> None:
        """Begin training, or continue after so many task rows; nothing is logged yet."""
        self.task_rows = task_rows
        self._penalties.begin()

    def plan(self, totals: Tensor, task_rows: int, slots: int) -> None:
        """Begin an optimizer step: set its counts over all micro-batches and processes, and its auxiliary rows.

        Args:
            totals: (len(SOURCES), 2), the sum of `Marks.counts` over the whole step.
            task_rows: how many task rows the whole step holds.
            slots: micro-batches times processes; auxiliary rows are distributed over them in turn.
        """
        before, self.task_rows = self.task_rows, self.task_rows + task_rows
        self._penalties.plan(totals, before, self.task_rows, slots)

    @contextmanager
    def watch(self, marks: Marks) -> Iterator[list[RecordedCall]]:
        """Record the trainer's forward; exactly one call of the backbone must build a gradient.

        Raises:
            ForwardPassError: the loss made no such call, or several.
        """
        with self._hooks.recording() as calls, self._hooks.steering(marks):
            yield calls
        if len(calls) != 1 or calls[0].final is None:
            raise ForwardPassError(
                f"The trainer's loss made {len(calls)} forwards that build a gradient; staytrue guards exactly one. "
                "Turn off what adds forwards (a compute_loss_func, chunked log-probabilities) for a defended run."
            )

    def steering(self, marks: Marks) -> Any:
        """Steer a whole micro-batch, recomputation in the backward pass included."""
        return self._hooks.steering(marks)

    def penalty(
        self, call: RecordedCall, marks: Marks, slot: int | None, shared: SharedProjection | None = None
    ) -> Tensor | None:
        """Compute the weighted penalties of one micro-batch; None if no defense has a penalty.

        Args:
            call: the call that `watch` recorded.
            marks: of the same micro-batch.
            slot: which of the step's slots this micro-batch is; None for one of no planned step, whose penalties are
                means over itself, without auxiliary rows, not logged and not kept apart for `combine`.
            shared: the trainer's own head, where a divergence may share its pass.

        Raises:
            ForwardPassError: the forward read a batch of another shape.
        """
        return self._penalties.of_micro_batch(call, marks, slot, shared)

    def combine(self, add_up: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> None:
        """Let defenses change the optimizer step's gradient in place, after the last micro-batch's backward pass.

        Args:
            add_up: sums a tensor over processes; the loss's own gradient is summed already.
        """
        self._penalties.combine(add_up)

    def _trained(self) -> list[Tensor]:
        return [weight for weight in self.parts.model.parameters() if weight.requires_grad]

    def drain(self) -> dict[str, Tensor]:
        """Return each defense's unweighted number since the last call; none of a defense without tokens in that time.

        It is a mean over the optimizer steps that hold a token of those that the penalty counts. On several processes
        each holds its share; the trainer sums them.
        """
        return self._penalties.drain()

    def drain_weighted(self) -> dict[str, Tensor]:
        """Return each penalty's part of the loss since the last call: with its weight, a mean over the steps."""
        return self._penalties.drain_weighted()

    def detach(self) -> None:
        """Take the hooks off the model, let all of it be trained again, and forget the reference."""
        self._hooks.remove()
        self.reference = AdapterOff(self.parts)
        thaw(self._frozen)

    def project(
        self, model: Any, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None
    ) -> dict[str, float]:
        """Change the trained weights in place after the last step, last defense first.

        `progress` shows how far a defense is, and `say` is called with its sentence about what it did.
        """
        return project(self.defenses, model, progress, say)
