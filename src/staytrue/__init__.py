"""staytrue: fine-tune a language model and keep its character.

from staytrue import GuardedSFT, KL     # SFTTrainer(...) becomes GuardedSFT(..., defenses=[KL(weight=0.1)])

The names below are the public ones; they are imported when first used, so `import staytrue` costs nothing. Every
defense in `staytrue/defenses/` is public too, by its class's name. Nothing inside the package imports from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
