"""`PenaltySteps`: what the penalties of a micro-batch see: a `Step` of its rows, and one of each defense's own rows.

Weights that are divided among processes (FSDP2) are gathered for each forward by all of them together. So each process
makes every forward that another one makes, of the reference and of auxiliary rows, also where it reads nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial

from torch import Tensor

from staytrue.defense import Defense, pulled
from staytrue.modeling import quantized
from staytrue.modeling.architecture import Adapted, ModelParts
from staytrue.modeling.lm_head import Head
from staytrue.modeling.reference_model import AdapterOff
from staytrue.modeling.sharded import gathered, whole_head
from staytrue.step import Activations, Marks, SharedProjection, Step
from staytrue.training.auxiliary_batches import AuxiliaryBatches
from staytrue.training.hooks import BackboneHooks, RecordedCall, ReferenceReplay
from staytrue.training.reference.scope import ReferenceScope


class PenaltySteps:
    """The steps that penalties see.

    Args:
        parts: of the trained model.
        defenses: of the run, by label.
        auxiliary: their rows beside the batch.
        hooks: on the model.
        reference: the reference model.
        replay: repeats a call with the reference model, or reads its states from a cache.
        head: returns the LM head, or refuses one that staytrue cannot compute.
        shards: among how many processes the weights are divided; 0 where each has the whole model.

    Attributes:
        is_for_others: whether the present forward is one that only other processes need.
        scope: which rows and layers of the reference are computed for the micro-batch.
        replay: as above.
    """

    def __init__(
        self,
        parts: ModelParts,
        defenses: Mapping[str, Defense],
        auxiliary: AuxiliaryBatches,
        hooks: BackboneHooks,
        reference: AdapterOff,
        replay: ReferenceReplay,
        head: Callable[[], Head],
        shards: int,
    ) -> None:
        self._parts, self._auxiliary, self._hooks, self._shards = parts, auxiliary, hooks, shards
        self._reference, self.replay = reference, replay
        self._head = partial(whole_head, parts, head, divided=bool(shards))
        self._steered = any("steer" in pulled(defense) for defense in defenses.values())
        readers = {k: d for k, d in defenses.items() if "penalty" in pulled(d) and d.reads_reference}
        of_batch = {label: defense for label, defense in readers.items() if label not in auxiliary}
        self._batch_together = bool(shards and of_batch)
        self._auxiliary_together = bool(shards and len(readers) > len(of_batch))
        self.scope = ReferenceScope.of(of_batch, len(parts.blocks)) if of_batch and not shards else ReferenceScope()
        if quantized.rows_depend_on_each_other(parts.model):
            self.scope = replace(self.scope, source=None)
        self.is_for_others = False

    def of_batch(
        self, call: RecordedCall, marks: Marks, totals: Tensor, shared: SharedProjection | None = None
    ) -> Step:
        """Return the step of the micro-batch's own rows.

        Args:
            call: the trainer's forward.
            marks: of its rows.
            totals: (len(SOURCES), 2), the `Marks.counts` that penalties are means over.
            shared: the trainer's own head, where a divergence may share its pass.
        """
        step = self._step(call, marks, totals, partial(self.scope.reference, self.replay, call, marks), shared)
        if self._batch_together:
            _ = step.reference
        return step

    def of_auxiliary_rows(self, like: RecordedCall, slot: int, totals: Tensor) -> tuple[dict[str, Step], Tensor | None]:
        """Run one forward for all auxiliary rows due in this slot; return a step per defense with its own rows only.

        Also return the hidden states (B, T, D) of a forward that only the other processes need, where weights are
        divided; its backward pass is theirs too.

        Args:
            like: the trainer's forward.
            slot: of the optimizer step.
            totals: (len(SOURCES), 2), the `Marks.counts` of the task's rows in the whole optimizer step.
        """
        device = next(self._parts.backbone.parameters()).device
        taken = like.tokens.shape if like.tokens is not None and self._steered else None
        batch = self._auxiliary.batch(slot, device, taken, self._shards)
        if batch is None:
            return {}, None
        self.is_for_others = not batch.slices
        call = self._hooks.call(like, batch.marks, **batch.inputs)
        self.is_for_others = False
        whole = self._step(call, batch.marks, totals, partial(self.replay, call, batch.marks, None, None))
        if self._auxiliary_together:
            _ = whole.reference
        steps = {label: whole.rows(first, last, own) for label, first, last, own in batch.slices}
        return steps, None if steps else call.final

    def _step(
        self,
        call: RecordedCall,
        marks: Marks,
        totals: Tensor,
        replay: Callable[[], Activations],
        shared: SharedProjection | None = None,
    ) -> Step:
        return Step(
            policy=call.result(),
            marks=marks,
            totals=totals.to(marks.real.device),
            head=self._head,
            replay=replay,
            tokens=call.tokens,
            shared=shared,
            adapted=self._adapted,
            changed=self._reference.changed,
            reference_head=self._reference.head,
        )

    @cached_property
    def _whole_adapted(self) -> list[Adapted]:
        return self._parts.adapted()

    def _adapted(self) -> list[Adapted]:
        if not self._shards:
            return self._whole_adapted
        return [replace(m, a=gathered(m.a), b=gathered(m.b)) for m in self._parts.adapted()]
