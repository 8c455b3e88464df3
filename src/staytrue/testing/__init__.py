"""The contract of every defense, for the shipped ones and for your own.

    from staytrue.testing import contract
    contract(MyDefense(weight=0.3), model, tokenizer, rows)     # model: peft, freshly initialised; rows: Examples

Give it a model without an adapter too: the contract then holds for full fine-tuning.

`levers` checks each method by itself, without a trainer. `training` trains the model with `GuardedSFT`. `verified`
lets `staytrue verify` check the files of a training. `together` takes one step with several defenses. `two_processes`
trains on two processes; compare its result with `alike`. Each raises AssertionError with one sentence where a defense
breaks the contract. `close` returns whether two numbers agree up to rounding. No contract can know the direction of a
divergence or the scale that was meant: test those in the defense's own test file, with a number worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staytrue.data.examples import Example
from staytrue.defense import Defense
from staytrue.testing.close import close, unlike
from staytrue.testing.levers import levers
from staytrue.testing.micro import Micro
from staytrue.testing.processes import two_processes
from staytrue.testing.training import Trained, alike, cases, together, trained, training
from staytrue.testing.verified import verified

__all__ = ["Micro", "Trained", "alike", "cases", "close", "contract", "levers", "together", "trained", "training",
           "two_processes", "unlike", "verified"]  # fmt: skip


def contract(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Raise AssertionError, with a sentence, where a defense breaks the contract.

    Args:
        defense: the defense as its user would configure it.
        model: a freshly initialised peft model (its B matrices are zero, so it has not moved), or a model without an
            adapter, whose own weights are trained; float32, and small, since it is trained a few times on the CPU. It
            is left as it was.
        tokenizer: the model's tokenizer, with a chat template.
        rows: a few conversations of uneven length.
    """
    levers(defense, model, tokenizer, rows)
    training(defense, model, tokenizer, rows)
    verified(defense, model, tokenizer, rows)
