"""`Defense`: what the base class declares, each possible misuse refused in a sentence or working."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

import tiny
from staytrue.data.examples import Example
from staytrue.defense import Defense
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.errors import RecipeError
from staytrue.registry import labelled
from staytrue.testing import Micro, levers


def model():
    return tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows()


@dataclass(frozen=True)
class Layered(Defense):
    weight: float = 1.0
    layers: tuple[int, ...] = (1,)

    def penalty(self, step):
        return step.mean(step.divergence(step.span()), step.span())


@dataclass(frozen=True)
class Timed(Defense):
    weight: float = 1.0
    on: Literal["early", "late"] = "early"

    def penalty(self, step):
        return step.mean(step.divergence(step.span()), step.span())


@dataclass(frozen=True)
class OnWeekdays(Defense):
    on: Literal["monday", "tuesday"] = "monday"

    def curate(self, examples, base, seed):
        return examples[1:]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (KL(), r"defenses is KL\(.*\); give a list, such as \[Anchor\(\)\]"),
        ("kl", r"defenses is 'kl'; give a list"),
        (None, r"defenses is None; give a list"),
        ({"kl": {}}, r"defenses is \{'kl': \{\}\}; give a list"),
        (["kl"], r"defenses holds 'kl', which is not a defense\. Write an instance, such as Anchor\(\)\."),
        ([KL], r"defenses holds <class .*KL'>, which is not a defense"),
    ],
)
def test_what_is_no_list_of_defenses_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(RecipeError, match=sentence):
        labelled(given)


def test_a_field_with_the_name_of_a_method_is_refused():
    with pytest.raises(RecipeError, match=r"Layered has a field 'layers', which is the name of a method.* Rename"):
        labelled([Layered()])


def test_a_penalty_whose_on_has_values_of_its_own_is_refused():
    with pytest.raises(RecipeError, match=r"Timed has on='early', but `on` names the rows .*task, interleaved, all"):
        labelled([Timed()])


def test_on_is_free_where_there_is_no_penalty():
    assert list(labelled([OnWeekdays()])) == ["onweekdays"]


@dataclass(frozen=True)
class PushAndHold(Defense):
    """Steers a layer and punishes drift of the same, steered, activations."""

    weight: float = 1.0

    def layers(self, depth):
        return (1,)

    def steer(self, hidden, layer, marks):
        return hidden + 0.05 * marks.real.unsqueeze(-1).to(hidden.dtype)

    def penalty(self, step):
        span = step.span()
        drift = step.policy.at(1)[span.mask].float() - step.reference.at(1)[span.mask].float()
        return step.mean(drift.square().mean(-1), span)


def test_one_defense_may_steer_a_layer_and_read_it():
    levers(PushAndHold(), *model())


@dataclass(frozen=True)
class Shrink(Defense):
    """Punishes the distance of the last hidden state from a constant; reads no reference."""

    reads_reference: ClassVar[bool] = False
    teaches: ClassVar[bool] = True

    weight: float = 1.0

    def penalty(self, step):
        span = step.span()
        return step.mean((step.policy.final[span.mask].float() - 3).square().mean(-1), span)


@dataclass(frozen=True)
class Claims(KL):
    reads_reference: ClassVar[bool] = False


@dataclass(frozen=True)
class Forgets(Shrink):
    reads_reference: ClassVar[bool] = True


def test_a_penalty_that_reads_no_reference_costs_none():
    micro = Micro([Shrink()], *model())
    assert micro.measure(nudge=1.0).references == 0


def replayed(defenses):
    """How many rows the reference had, and which blocks ran in it."""
    rows = [Example(row.messages, "interleaved" if i < 2 else "task") for i, row in enumerate(tiny.rows())]
    micro, blocks = Micro(defenses, tiny.lora(tiny.model()), tiny.tokenizer(), rows), []
    for number, block in enumerate(micro.guard.parts.blocks, start=1):
        block.register_forward_pre_hook(
            lambda module, args, number=number: (
                None if torch.is_grad_enabled() else blocks.append((number, len(args[0])))
            )
        )
    micro.measure(nudge=1.0)
    return blocks


def test_beside_a_partial_reference_it_leaves_the_reference_partial():
    early = LDIFS(blocks=(1,), on="interleaved")
    assert replayed([early]) == replayed([early, Shrink()]) == [(1, 2)]
    assert len(replayed([early, KL()])) == 2


def test_the_contract_notices_a_wrong_claim_about_the_reference():
    with pytest.raises(AssertionError, match="claims declares reads_reference = False, but reads the reference"):
        levers(Claims(), *model())
    with pytest.raises(AssertionError, match="forgets reads no reference; declare `reads_reference"):
        levers(Forgets(), *model())


@dataclass(frozen=True)
class WrongShape(Defense):
    def layers(self, depth):
        return (1,)

    def steer(self, hidden, layer, marks):
        return hidden + torch.ones(7)


def test_an_error_inside_a_defense_is_a_sentence_of_the_contract():
    with pytest.raises(AssertionError, match="wrongshape stops with RuntimeError: The size of tensor"):
        levers(WrongShape(), *model())


@dataclass(frozen=True)
class Rowless(KL):
    def combine(self, task, own):
        return list(own)


def test_a_gradient_of_ones_own_needs_rows_of_ones_own():
    with pytest.raises(RecipeError, match="Rowless overrides 'combine', so it also needs 'beside' and 'penalty'"):
        labelled([Rowless()])


@dataclass(frozen=True)
class Unread(Defense):
    share: float = 0.1

    def steer(self, hidden, layer, marks):
        return hidden


class Beside(Unread):
    def beside(self, base, seed):
        return []


class Prepared(Unread):
    def prepare(self, parts, base):
        return 1


@pytest.mark.parametrize(("kind", "method"), [(Beside, "beside"), (Prepared, "prepare")])
def test_what_only_a_penalty_reads_is_refused_without_one(kind, method):
    with pytest.raises(RecipeError, match=f"overrides '{method}' but not 'penalty'.* or take '{method}' out"):
        labelled([kind()])
