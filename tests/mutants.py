"""What can be wrong with a defense or with the seam: broken pieces that test_mutants.py puts in place of whole ones."""

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from staytrue.defense import Defense
from staytrue.defenses.freeze import Freeze
from staytrue.defenses.kl import KL
from staytrue.defenses.steer import Steer
from staytrue.modeling import fused_loss
from staytrue.modeling.architecture import ModelParts
from staytrue.step import SOURCES, Marks, Span, Step
from staytrue.training.guard import Guard
from staytrue.training.hooks import BackboneHooks
from staytrue.training.micro_batch import MicroBatch
from staytrue.training.separate_gradients import SeparateGradients

PENALTY, SPAN, ROWS = KL.penalty, Step.span, Step.rows
NOTE = Guard._note
HOOK, REPLAY, COMPARE = BackboneHooks.__init__, BackboneHooks.replay, fused_loss._TiledPass._compare


def detached(self, step):
    return PENALTY(self, step).detach()


def root(self, step):
    """A norm instead of its square: a hand-written square root has no slope at 0."""
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


def right_value_wrong_slope(task, ours, theirs, room):
    value, _, _ = COMPARE(task, ours, theirs.clone(), room.clone())  # they are used up
    return value, *COMPARE(replace(task, forward=not task.forward), ours, theirs, room)[1:]


def on_the_neighbouring_block(self, parts, kept, steers):
    shifted = copy.copy(parts)
    shifted.__dict__["blocks"] = [*parts.blocks[1:], parts.blocks[0]]
    HOOK(self, shifted, kept, steers)


def next_layer(self, layer):
    return self.hidden[(layer if layer > 0 else self.depth + 1 + layer) % self.depth + 1]


@contextmanager
def steering_for_good(self, marks):
    self._marks = marks or self._marks
    yield


def switched_off_for_nobody(self):
    return nullcontext()


def replayed_unsteered(self, *asked):
    steers, self._steers = self._steers, {}
    try:
        return REPLAY(self, *asked)
    finally:
        self._steers = steers


def one_row_of_eight_unlogged(self, name, value):
    self._rows_seen = getattr(self, "_rows_seen", 0) + 1
    if self._rows_seen % 8:
        NOTE(self, name, value)


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
