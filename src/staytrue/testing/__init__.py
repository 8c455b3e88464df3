"""The contract that every defense keeps, for the ones that ship and for anybody's own.

    from staytrue.testing import contract
    contract(MyDefense(weight=0.3), model, tokenizer, rows)     # model: peft, freshly initialised; rows: Examples

`levers` looks at each lever by itself, without a trainer; `training` trains the model under `GuardedSFT`; `together`
takes one step with several defenses; `two_processes` trains on two and compares with one; `close` says how close two
numbers must be. Each raises AssertionError, one sentence, where a defense breaks the contract, but `close`, which says
yes or no. What no contract can know, such as the direction of a divergence, is for a number worked out by hand in the
defense's own test.
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

__all__ = ["Micro", "Trained", "alike", "cases", "close", "contract", "levers", "together", "trained", "training",
           "two_processes", "unlike"]  # fmt: skip


def contract(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Raise AssertionError, with a sentence, where a defense breaks the contract.

    Args:
        defense: the defense as its user would configure it.
        model: a freshly initialised peft model (its B matrices are zero, so it has not moved), float32; small, since
            it is trained a few times on the CPU. It is left as it was.
        tokenizer: the model's tokenizer, with a chat template.
        rows: a few conversations of uneven length.
    """
    levers(defense, model, tokenizer, rows)
    training(defense, model, tokenizer, rows)
