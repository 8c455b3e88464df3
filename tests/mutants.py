"""What can be wrong with a defense or with the seam: broken pieces that test_mutants.py puts in place of whole ones."""

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import torch

from staytrue.defense import Defense
from staytrue.defenses.freeze import Freeze
from staytrue.defenses.kl import KL
from staytrue.defenses.safelora import SafeLoRA
from staytrue.defenses.steer import Steer
from staytrue.modeling import fused_loss
from staytrue.modeling.architecture import ModelParts
from staytrue.step import SOURCES, Activations, Marks, Span, Step
from staytrue.training.guard import Guard
from staytrue.training.hooks import BackboneHooks
from staytrue.training.micro_batch import MicroBatch
from staytrue.training.penalty_log import PenaltyLog
from staytrue.training.row_schedule import AuxiliaryRows
from staytrue.training.separate_gradients import SeparateGradients
from staytrue.training.weighted_penalties import WeightedPenalties

PENALTY, SPAN, ROWS = KL.penalty, Step.span, Step.rows
WEIGHTED, ADD = WeightedPenalties._weighted, PenaltyLog.add
HOOK, REPLAY, COMPARE = BackboneHooks.__init__, BackboneHooks.replay, fused_loss.compare


def detached(self, step):
    return PENALTY(self, step).detach()


def root(self, step):
    """A norm instead of its square: a hand-written square root has no gradient at 0."""
    span = step.span()
    return step.mean((step.policy.at(1) - step.reference.at(1))[span.mask].square().sum(-1).sqrt(), span)


def of_the_model_alone(self, step):
    span = step.span()
    return step.mean(step.policy.at(1)[span.mask].square().mean(-1), span)


def prompt_tokens(self, on="all", tokens="scored"):
    return SPAN(self, on, "prompt")


def padding_too(self, on, tokens):
    kinds = {"scored": self.scored | ~self.real, "prompt": ~self.scored, "all": self.real | True}
    return kinds[tokens] if on == "all" else kinds[tokens] & (self.source == SOURCES.index(on))


def unshifted(labels, real, source):
    return Marks(real, labels != -100, source.unsqueeze(1).expand_as(labels))


def every_source(self, on="all", tokens="scored"):
    return SPAN(self, "all", tokens)


def other_source(self, on="all", tokens="scored"):
    return SPAN(self, {"task": "interleaved", "interleaved": "task"}.get(on, on), tokens)


def of_the_task_alone(self, on="all", tokens="scored"):
    return SPAN(self, "task", tokens)


def mean_over_all_rows(self, on="all", tokens="scored"):
    return Span(SPAN(self, on, tokens).mask, SPAN(self, "all", tokens).total)


def mean_over_the_micro_batch(self, per_token, span):
    return per_token.mean() if per_token.numel() else per_token.sum()


def other_side_rows_too(self, first, last, totals):
    return ROWS(self, 0, len(self.marks.real), totals)


def mean_over_training_rows(self, first, last, totals):
    return ROWS(self, first, last, self._totals)


def mean_over_side_rows_here(self, first, last, totals):
    return ROWS(self, first, last, ROWS(self, first, last, totals).marks.counts())


def the_other_direction(self, step):
    span = step.span(self.on, self.tokens)
    return step.mean(step.divergence(span, forward=not self.forward), span)


def right_value_wrong_gradient(ours, theirs, buffer, *, forward):
    value, _, _ = COMPARE(ours, theirs.clone(), buffer.clone(), forward=forward)  # they are used up
    return value, *COMPARE(ours, theirs, buffer, forward=not forward)[1:]


def on_the_neighbouring_block(self, parts, kept, steers, reference=None):
    shifted = copy.copy(parts)
    shifted.__dict__["blocks"] = [*parts.blocks[1:], parts.blocks[0]]
    HOOK(self, shifted, kept, steers, reference)


def next_layer(self, layer):
    return self.hidden[(layer if layer > 0 else self.depth + 1 + layer) % self.depth + 1]


@contextmanager
def steering_for_good(self, marks):
    self._marks = marks or self._marks
    yield


def switched_off_for_nobody(self):
    return nullcontext()


def replayed_unsteered(self, *arguments):
    steers, self._steers = self._steers, {}
    try:
        return REPLAY(self, *arguments)
    finally:
        self._steers = steers


def one_row_of_eight_unlogged(self, name, value):
    self._rows_seen = getattr(self, "_rows_seen", 0) + 1
    if self._rows_seen % 8:
        ADD(self, name, value)


def logged_times_the_slots(self, *arguments, **options):
    scaled = lambda name, value: ADD(self._log, name, value * self.auxiliary._slots)  # noqa: E731
    with mock.patch.object(self._log, "add", scaled):
        return WEIGHTED(self, *arguments, **options)


@dataclass(frozen=True)
class LocalKL(Defense):
    """KL as a mean over one process's tokens."""

    weight: float = 0.1

    def penalty(self, step):
        span = step.span()
        return step.divergence(span).mean()


STEER = Steer.steer


def steered_after_detaching(self, hidden, layer, marks):
    return STEER(self, hidden.detach(), layer, marks)


def steered_with_half_of_it_detached(self, hidden, layer, marks):
    return STEER(self, (hidden + hidden.detach()) / 2, layer, marks)


ADAPTED = ModelParts.adapted


def copies_of_the_weights(self):
    return [replace(matrix, a=matrix.a.detach(), b=matrix.b.detach()) for matrix in ADAPTED(self)]


FREEZE = Freeze.freeze


def the_next_block(self, depth):
    return tuple(layer % depth + 1 for layer in FREEZE(self, depth))


KEEP = SeparateGradients.keep


def divided_by_nothing(self, task, own):
    along = sum((g * a).sum() for g, a in zip(task, own, strict=True))
    size = sum(a.square().sum() for a in own)
    return [g + (1 - along.clamp(max=0) / size) * a for g, a in zip(task, own, strict=True)]


def the_last_gradient_alone(self, label, penalty):
    for gradient in self._buffers.get(label, ()):
        gradient.zero_()
    return KEEP(self, label, penalty)


def combined_at_once(self, label, penalty):
    """As if each micro-batch were a step: its own gradient is combined with the one that has gathered until then."""
    value, kept = KEEP(self, label, penalty), self._buffers
    self.combine(lambda gradient: gradient)
    self._buffers = {name: [torch.zeros_like(g) for g in gradients] for name, gradients in kept.items()}
    return value


def without_signs(self, task, own):
    return [g.abs() + a for g, a in zip(task, own, strict=True)]


RECORDED = MicroBatch.recorded


@contextmanager
def recorded_again(self, head):
    self.evaluated = False
    with RECORDED(self, head):
        yield


def nothing(self, *arguments):
    """In place of a check: it refuses nothing."""


# --- what can be wrong with a run: a defense that is skipped or weakened in silence -----------------------------------

PENALTIES, DRAIN = Guard.penalty, Guard.drain


def times(factor):
    """Penalties of another weight in the loss."""

    def penalty(self, *arguments, **options):
        total = PENALTIES(self, *arguments, **options)
        return None if total is None else total * factor

    return penalty


def every_other_one_detached(self, *arguments, **options):
    self._calls = getattr(self, "_calls", 0) + 1
    total = PENALTIES(self, *arguments, **options)
    return total if self._calls % 2 else total.detach()


def never_evaluated(self, *arguments, **options):
    return None


def left_out_of_the_loss(self, head):
    self._guard.penalty(self._calls[0], self.marks, self._slot, head)
    self.evaluated = True


def drained(change):
    """Other numbers in the log."""

    def drain(self):
        return {name: changed for name, value in DRAIN(self).items() if (changed := change(name, value)) is not None}

    return drain


AT = Activations.at


def features_detached(self, layer):
    return AT(self, layer).detach()


def unsteered(self, hidden, layer, marks):
    return hidden


def steered_the_other_way(self, hidden, layer, marks):
    return 2 * hidden - STEER(self, hidden, layer, marks)


def steered_by_half(self, hidden, layer, marks):
    return (hidden + STEER(self, hidden, layer, marks)) / 2


def steered_in_the_first_half_of_a_row(self, hidden, layer, marks):
    steered = STEER(self, hidden, layer, marks).clone()
    half = hidden.shape[1] // 2
    steered[:, half:] = hidden[:, half:]
    return steered


def steered_at_random(self, hidden, layer, marks):
    """By as much, in another direction."""
    shift = STEER(self, hidden, layer, marks) - hidden
    return hidden + shift.roll(1, -1)


@contextmanager
def steering_never(self, marks):
    yield


@contextmanager
def steering_at_first(self, marks):
    """In a few micro-batches only."""
    self._steered = getattr(self, "_steered", 0) + 1
    self._marks, before = marks if self._steered < 9 else None, self._marks
    yield
    self._marks = before


def nothing_frozen(parts, defenses):
    return []


def rows_as_they_were(self, examples, base, seed):
    return examples


def of_every_other_row(curate):
    def half(self, examples, base, seed):
        edited = curate(self, examples, base, seed)
        return [new if i % 2 else old for i, (old, new) in enumerate(zip(examples, edited, strict=True))]

    return half


def of_half_the_added_rows(curate):
    def half(self, examples, base, seed):
        added = curate(self, examples, base, seed)[len(examples) :]
        return examples + added[: len(added) // 2]

    return half


def task_rows_in_their_place(self, examples, base, seed):
    count = round(self.share * len(examples))
    return examples + [replace(row, source="interleaved") for row in examples[:count]]


def task_rows_alone(self):
    rows = [i for i, source in enumerate(self.sources) if source == 0]
    return iter((rows * 2)[: len(self.sources)])


def no_rows_due(self, before, after):
    return []


DUE = AuxiliaryRows.due


def half_the_rows_due(self, before, after):
    return DUE(replace(self, share=self.share / 2), before, after)


def other_rows_due(self, before, after):
    return [replace(row, input_ids=row.input_ids[::-1]) for row in DUE(self, before, after)]


def never_combined(self, add_up=None):
    self._penalties._separate.clear()


def the_tasks_gradient_alone(self, task, own):
    return list(task)


def never_kept_apart(self, label, penalty):
    return penalty.detach()


def half_kept(self, label, penalty):
    before = [total.clone() for total in self._buffers.get(label, ())]
    loss = KEEP(self, label, penalty)
    for total, old in zip(self._buffers.get(label, ()), before, strict=True):
        total.add_(old).div_(2)
    return loss


def own_gradient_doubled(self, task, own):
    return [g + 2 * a for g, a in zip(task, own, strict=True)]


PROJECT = SafeLoRA.project


def projected_on_a_copy(self, model):
    return PROJECT(self, copy.deepcopy(model))


def projected_never(self, model):
    return {}


def projected_too_few(self, model):
    return PROJECT(replace(self, most=1), model)
