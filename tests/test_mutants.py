"""Tests of the tests: each way in which a defense or the seam can be wrong is made so, and a named check says it.

A mutant is a patch. Its check passes without it and raises AssertionError with it: the contract (`levers`, `together`),
two ways to train that must agree (`alike`), or a number worked out by hand.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
from trl import SFTTrainer

import mutants
import tiny
from defenses import test_anchor, test_freeze, test_kl, test_ldifs, test_safegrad
from staytrue.data.examples import write_examples
from staytrue.defense import Defense
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.freeze import Freeze
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.safegrad import SafeGrad
from staytrue.defenses.steer import Steer
from staytrue.errors import ForwardPassError
from staytrue.modeling import fused_loss
from staytrue.modeling.architecture import ModelParts
from staytrue.registry import find
from staytrue.step import Activations, Marks, Step
from staytrue.testing import alike, levers, together, trained, two_processes
from staytrue.training import defense_fit, padded_batch, trainer_mixin
from staytrue.training.guard import Guard
from staytrue.training.hooks import BackboneHooks
from staytrue.training.micro_batch import MicroBatch
from staytrue.training.outcome import Outcome
from staytrue.training.penalty_log import PenaltyLog
from staytrue.training.separate_gradients import SeparateGradients
from staytrue.training.trainer_mixin import Guarded
from staytrue.training.weighted_penalties import WeightedPenalties
from test_every_defense import sample
from training import test_outcome, test_trainers
from training.test_padded_batch import (
    test_position_t_is_scored_when_token_t_plus_1_is_learnt_and_padding_never_is as marks_by_hand,
)

# --- the checks -------------------------------------------------------------------------------------------------------


def model():
    return tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows()


@cache
def the_contract(name):
    return lambda folder: levers(sample(name, folder), *model())


def steering_at(*layers):
    def check(folder):
        both = type("Steers", (Steer,), {"layers": lambda self, depth: layers})
        levers(both(**vars(sample("steer", folder))), *model())

    return check


def side_by_side(*names):
    return lambda folder: together([sample(name, folder) for name in names], *model())


def anchor(folder):
    write_examples(folder / "pool.jsonl", tiny.rows(12))
    return Anchor(folder / "pool.jsonl", share=0.25, answers="given")


def safegrad(folder):
    write_examples(folder / "pool.jsonl", tiny.rows(12))
    return SafeGrad(folder / "pool.jsonl", share=0.5, weight=0.3)


def in_parts(make):
    def check(folder):
        one = [make(folder)]
        whole = trained(one, *model())
        parts = trained(one, *model(), per_device_train_batch_size=1, gradient_accumulation_steps=8)
        alike(whole, parts, "one batch of 8 and eight of 1")

    return check


def near_zero(folder):
    """The log of a divergence of millionths of a nat."""
    slow = {"nudge": 0.05, "learning_rate": 1e-4}
    whole = trained([KL()], *model(), **slow)
    parts = trained([KL()], *model(), per_device_train_batch_size=1, gradient_accumulation_steps=8, **slow)
    assert all(1e-6 < row["kl"] < 1e-5 for row in whole.log), whole.log
    alike(whole, parts, "one batch of 8 and eight of 1")


def by_hand(test, *arguments):
    return lambda folder: test(*arguments)


def refused(cls):
    """A subclass that trains past the defenses ends in an error."""

    def check(folder):
        try:
            test_trainers.trainer(folder, [KL()], cls=cls).train()
        except ForwardPassError:
            return
        raise AssertionError(f"{cls.__name__} trains undefended in silence")

    return check


kl_in_parts = in_parts(lambda folder: KL())
kl_by_hand = by_hand(test_kl.test_it_is_the_mean_over_the_chosen_tokens_of_the_chosen_rows, "all", "scored",
                     (test_kl.LARGE + 0 + test_kl.SMALL) / 3)  # fmt: skip
interleaved_kl_by_hand = by_hand(test_kl.test_it_is_the_mean_over_the_chosen_tokens_of_the_chosen_rows, "interleaved",
                                 "scored", test_kl.SMALL)  # fmt: skip
kl_gradient_by_hand = by_hand(test_kl.test_its_gradient_is_on_the_chosen_tokens_only, False, test_kl.log(3) / 4)
anchor_by_hand = by_hand(test_anchor.test_it_is_the_mean_over_its_own_answer_tokens_only, False,
                         (test_anchor.SMALL + test_anchor.LARGE) / 2)  # fmt: skip
anchor_step_by_hand = by_hand(test_anchor.test_its_own_rows_elsewhere_in_the_optimizer_step_count_too)
ldifs_by_hand = by_hand(test_ldifs.test_given_blocks_are_the_only_ones_looked_at_and_may_count_from_the_end)


@dataclass(frozen=True)
class Mutant:
    what: str
    place: object
    name: str
    broken: object
    check: Callable
    says: str = ""  # of a number by hand there is nothing to say but that it differs


MUTANTS = [
    Mutant("a detached penalty", KL, "penalty", mutants.detached, the_contract("kl"), "has a value .* but no gradient"),
    Mutant("detached features, as published", Activations, "at", lambda self, layer: self.hidden[layer].detach(),
           the_contract("ldifs"), "has a value .* but no gradient"),
    Mutant("a square root by hand", LDIFS, "penalty", mutants.root, the_contract("ldifs"), "at step 0 is not finite"),
    Mutant("no reference at all", LDIFS, "penalty", mutants.of_the_model_alone, the_contract("ldifs"), "has not moved"),
    Mutant("a reference that is asked for twice", Step, "reference", property(lambda self: self._replay()),
           the_contract("ldifs"), "caused 2 reference forwards"),
    Mutant("a reference with the adapter on", ModelParts, "untrained", mutants.switched_off_for_nobody,
           the_contract("kl"), "does not notice"),
    Mutant("a reference that is not steered", BackboneHooks, "replay", mutants.replayed_unsteered,
           side_by_side("kl", "steer"), "on a model that has not moved"),
    Mutant("prompt tokens in place of scored ones", Step, "span", mutants.prompt_tokens, kl_by_hand),
    Mutant("padding scored too", Marks, "mask", mutants.padding_too, kl_by_hand),
    Mutant("labels that are not shifted", padded_batch, "marks_of", mutants.unshifted, by_hand(marks_by_hand)),
    Mutant("task rows where interleaved ones are asked for", Step, "span", mutants.every_source,
           interleaved_kl_by_hand),
    Mutant("a mean over all rows, not its own", Step, "span", mutants.mean_over_all_rows, interleaved_kl_by_hand),
    Mutant("a mean over the micro-batch", Step, "mean", mutants.mean_over_the_micro_batch,
           kl_in_parts, "eight of 1 (end .* apart|log kl)"),
    Mutant("the same on the interleaved rows", Step, "mean", mutants.mean_over_the_micro_batch,
           in_parts(lambda folder: KL(on="interleaved")), "eight of 1 (end .* apart|log kl)"),
    Mutant("a weight that grows with accumulation", trainer_mixin, "later_division",
           lambda trainer, items: trainer.current_gradient_accumulation_steps, kl_in_parts,
           "eight of 1 end .* apart"),
    Mutant("a divergence near zero, one row of eight unlogged", PenaltyLog, "add", mutants.one_row_of_eight_unlogged,
           near_zero, "eight of 1 log kl"),
    Mutant("a divergence near zero, times eight", WeightedPenalties, "_weighted", mutants.logged_times_the_slots,
           near_zero, "eight of 1 log kl"),
    Mutant("an anchor on other defenses' rows too", Step, "rows", mutants.other_side_rows_too, anchor_by_hand),
    Mutant("an anchor's mean over the training rows", Step, "rows", mutants.mean_over_training_rows, anchor_by_hand),
    Mutant("an anchor's mean over its rows in the micro-batch", Step, "rows", mutants.mean_over_side_rows_here,
           anchor_step_by_hand),
    Mutant("the same under the trainer", Step, "rows", mutants.mean_over_side_rows_here, in_parts(anchor),
           "eight of 1 (end .* apart|log anchor)"),
    Mutant("the other direction", KL, "penalty", mutants.the_other_direction, kl_by_hand),
    Mutant("the gradient of the other direction", fused_loss, "compare", mutants.right_value_wrong_gradient,
           kl_gradient_by_hand),
    Mutant("a hook that reads the neighbouring block", BackboneHooks, "__init__", mutants.on_the_neighbouring_block,
           the_contract("ldifs"), r"reads as layer (\d) is not what block \1 gives"),
    Mutant("a hook that steers the neighbouring block", BackboneHooks, "__init__", mutants.on_the_neighbouring_block,
           the_contract("steer"), "names layer 1, but layer 2 is the first that moves"),
    Mutant("a defense that looks at the neighbouring block", Activations, "at", mutants.next_layer, ldifs_by_hand),
    Mutant("steering that stays on", BackboneHooks, "steering", mutants.steering_for_good, the_contract("steer"),
           "outside a training forward"),
    Mutant("a steering that does nothing", Steer, "steer", lambda self, hidden, layer, marks: hidden,
           the_contract("steer"), "no activation moves"),
    Mutant("a number of the weights in every micro-batch", Step, "once", lambda self, value: value,
           in_parts(lambda folder: L2Init()), "eight of 1 (end .* apart|log l2init)"),
    Mutant("a copy of the weights", ModelParts, "adapted", mutants.copies_of_the_weights, the_contract("l2init"),
           "has a value .* but no gradient"),
    Mutant("a freeze of the neighbouring block", Freeze, "freeze", mutants.the_next_block,
           by_hand(test_freeze.test_after_three_steps_the_named_block_is_as_it_was_and_the_other_is_not, 1, 1)),
    Mutant("a freeze that freezes nothing", defense_fit, "freeze_blocks", lambda parts, defenses: [],
           the_contract("freeze"), r"freeze names \[1\], but layer 1 is frozen: False"),
    Mutant("a freeze that outlives the run", Guard, "detach", lambda self: self._hooks.remove(),
           the_contract("freeze"), "after the run .* is still frozen"),
    Mutant("surgery without the surgery", SafeGrad, "combine", Defense.combine,
           by_hand(test_safegrad.test_what_opposes_the_alignment_gradient_is_removed)),
    Mutant("surgery that divides by nothing", SafeGrad, "combine", mutants.divided_by_nothing,
           the_contract("safegrad"), "the gradient of safegrad at step 0 is not finite"),
    Mutant("surgery where there is nothing to protect", SafeGrad, "combine", mutants.without_signs,
           the_contract("safegrad"), "changes the task's gradient where its own is zero"),
    Mutant("surgery with the last micro-batch's gradient", SeparateGradients, "keep", mutants.the_last_gradient_alone,
           in_parts(safegrad), "eight of 1 end .* apart"),
    Mutant("surgery in every micro-batch", SeparateGradients, "keep", mutants.combined_at_once,
           in_parts(safegrad), "eight of 1 end .* apart"),
    Mutant("a steering that detaches, below the last layer", Steer, "steer", mutants.steered_after_detaching,
           steering_at(1), "does not reach the adapter in block 1; steer must not detach"),
    Mutant("a steering that detaches at the last layer", Steer, "steer", mutants.steered_after_detaching,
           steering_at(-1), "the steered loss has none; steer must not detach"),
    Mutant("a steering that detaches at both", Steer, "steer", mutants.steered_after_detaching, steering_at(1, 2),
           "the steered loss has none; steer must not detach"),
    Mutant("a steering that detaches half", Steer, "steer", mutants.steered_with_half_of_it_detached,
           the_contract("steer"), "bends the gradient: along one direction .* but the loss changes by"),
    Mutant("a loss without penalties", MicroBatch, "check_trained", mutants.nothing, refused(test_trainers.OwnLoss),
           "OwnLoss trains undefended"),
    Mutant("a training step that the defenses do not see", Guarded, "_end_step", mutants.nothing,
           refused(test_trainers.OwnStep), "OwnStep trains undefended"),
    Mutant("an optimizer step without a plan", Guarded, "_end_step", mutants.nothing,
           refused(test_trainers.OwnBatches), "OwnBatches trains undefended"),
    Mutant("two losses in one training step", MicroBatch, "recorded", mutants.recorded_again,
           refused(test_trainers.TwoLosses), "TwoLosses trains undefended"),
    Mutant("a script that leaves out the projection", Guarded, "train", lambda self: SFTTrainer.train(self),
           test_trainers.test_a_script_projects_its_weights_after_training_and_a_guards_owner_does_it_for_itself),
    Mutant("a training that moved nothing", Outcome, "fault", mutants.nothing,
           by_hand(test_outcome.test_the_smallest_move_of_one_b_counts_and_of_every_a_does_not),
           "DID NOT RAISE"),
    Mutant("prompts that stay as they are", find("inoculate"), "curate", lambda self, rows, base, seed: list(rows),
           the_contract("inoculate"), "the rows stay as they are"),
]  # fmt: skip


PASSED = set()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.what for m in MUTANTS])
def test_the_mutant_is_caught(mutant, tmp_path, monkeypatch):
    if mutant.check not in PASSED:  # passes as things are; once is enough for mutants that share a check
        mutant.check(tmp_path)
        PASSED.add(mutant.check)
    monkeypatch.setattr(mutant.place, mutant.name, mutant.broken)
    warnings.filterwarnings("ignore", "The gradients were overwritten", UserWarning)  # true, but not the check meant
    with pytest.raises((AssertionError, pytest.fail.Exception)) as caught:
        mutant.check(tmp_path)
    assert re.search(mutant.says, str(caught.value)), caught.value


@pytest.mark.slow
def test_a_mean_over_one_process_is_caught():
    local = [mutants.LocalKL()]
    one, two = trained(local, *model()), two_processes({"local": local}, *model())["local"]
    with pytest.raises(AssertionError, match=r"one process and two (end .* apart|log localkl)"):
        alike(one, two, "one process and two")
