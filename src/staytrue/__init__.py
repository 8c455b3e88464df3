"""staytrue: fine-tune a language model and keep its character.

from staytrue import Anchor, GuardedSFT     # SFTTrainer(...) becomes GuardedSFT(..., defenses=[Anchor()])

The names below are the public ones; they are imported when first used, so `import staytrue` costs nothing. Every
defense in `staytrue/defenses/` is public too, by its class's name. Nothing inside the package imports from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which cannot follow __getattr__
    from staytrue.config.recipe import Recipe as Recipe
    from staytrue.data.examples import Example as Example
    from staytrue.data.examples import Message as Message
    from staytrue.defense import Defense as Defense
    from staytrue.defenses.anchor import Anchor as Anchor
    from staytrue.defenses.constrained_sft import ConstrainedSFT as ConstrainedSFT
    from staytrue.defenses.freeze import Freeze as Freeze
    from staytrue.defenses.inoculate import Inoculate as Inoculate
    from staytrue.defenses.interleave import Interleave as Interleave
    from staytrue.defenses.kl import KL as KL
    from staytrue.defenses.l2init import L2Init as L2Init
    from staytrue.defenses.ldifs import LDIFS as LDIFS
    from staytrue.defenses.rehearse import Rehearse as Rehearse
    from staytrue.defenses.safegrad import SafeGrad as SafeGrad
    from staytrue.defenses.safelora import SafeLoRA as SafeLoRA
    from staytrue.defenses.steer import Steer as Steer
    from staytrue.errors import StaytrueError as StaytrueError
    from staytrue.evals.questions.probes import Probe as Probe
    from staytrue.evals.types import Judge as Judge
    from staytrue.evals.types import Question as Question
    from staytrue.evals.types import Verdict as Verdict
    from staytrue.persona_vectors.vector import PersonaVector as PersonaVector
    from staytrue.runs.eval_request import EvalRequest as EvalRequest
    from staytrue.runs.evaluate import evaluate_run as evaluate  # noqa: F401
    from staytrue.runs.train import train as train
    from staytrue.step import Step as Step
    from staytrue.testing import contract as contract
    from staytrue.training.guard import Guard as Guard
    from staytrue.training.trainers import GuardedGRPO as GuardedGRPO
    from staytrue.training.trainers import GuardedSFT as GuardedSFT

_WHERE = {
    "Defense": "defense:Defense",
    "EvalRequest": "runs.eval_request:EvalRequest",
    "Example": "data.examples:Example",
    "Guard": "training.guard:Guard",
    "GuardedGRPO": "training.trainers:GuardedGRPO",
    "GuardedSFT": "training.trainers:GuardedSFT",
    "StaytrueError": "errors:StaytrueError",
    "Judge": "evals.types:Judge",
    "Message": "data.examples:Message",
    "PersonaVector": "persona_vectors.vector:PersonaVector",
    "Probe": "evals.questions.probes:Probe",
    "Question": "evals.types:Question",
    "Recipe": "config.recipe:Recipe",
    "Step": "step:Step",
    "Verdict": "evals.types:Verdict",
    "contract": "testing:contract",
    "evaluate": "runs.evaluate:evaluate_run",
    "train": "runs.train:train",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, _, attribute = _WHERE[name].partition(":")
        return getattr(import_module(f"staytrue.{module}"), attribute)
    if name[:1].isupper():
        registry = import_module("staytrue.registry")
        for kind in map(registry.find, registry.names()):
            if kind.__name__ == name:
                return kind
    raise AttributeError(f"module 'staytrue' has no attribute {name!r}")


def __dir__() -> list[str]:
    registry = import_module("staytrue.registry")
    return sorted([*_WHERE, *(registry.find(name).__name__ for name in registry.names())])
