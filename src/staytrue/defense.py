"""`Defense`: every lever that can be pulled in the life of a run, on one page.

A defense is a frozen dataclass that overrides only the levers it pulls. Its fields are its configuration: the keys of
the recipe, nothing else. Every defense is final; none inherits from another.

The one law: a model that has not moved is not punished. At step 0 every penalty on drift is exactly 0. A defense that
brings rows to be learnt (`teaches`) has no drift to punish, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field

from staytrue.data.examples import Example

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import Anatomy
    from staytrue.step import Marks, Step

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # times a penalty in nats per token
ModelName = Annotated[str, "a model: a folder, relative to the recipe's, or a name"]
Share = Annotated[float, Field(gt=0, le=1)]  # added rows as a fraction of the task rows


class Base(Protocol):
    """A lazy handle on the untouched model and the run: nobody asks, nothing is loaded."""

    def answers(self, prompts: Sequence[Example], seed: int) -> list[Example]:
        """Each prompt with one answer sampled from the untouched model at temperature 1."""
        ...

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """How many tokens each row has."""
        ...

    def takes_system(self) -> bool:
        """Whether the model's chat template has a place for a system turn."""
        ...

    def asked(self) -> frozenset[str]:
        """Every question by which the run will be measured; no row may teach the answer to one."""
        ...

    def identity(self) -> str | None:
        """The model's hash or commit, None where it is not known."""
        ...

    def note(self, name: str, value: float | str) -> None:
        """Keep a fact about the data for the run's manifest."""
        ...


class Defense:
    """One way to keep a model's character while it is fine-tuned; the levers stand in the order of a run's life.

    Override at least one. A defense that overrides `penalty` has a field `weight`; one that overrides `beside` has a
    field `share`. Nothing here may be kept between calls: a defense is a description, and all state is the guard's.
    """

    teaches: ClassVar[bool] = False  # brings rows whose answers are learnt; then the law does not hold for its penalty

    @classmethod
    def name(cls) -> str:
        """What recipes and logs call it: the file's name, or the class's for one of your own."""
        folder, _, file = cls.__module__.rpartition(".")
        return file if folder == "staytrue.defenses" else cls.__name__.lower()

    def curate(self, examples: list[Example], base: Base, seed: int) -> list[Example]:
        """Before training: the training rows, edited or added to. Touch only sources that are your business."""
        return examples

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Before training: rows of its own, fed beside the batch at `share` of the task rows.

        They never enter the task's loss; `penalty` then gets *their* step, not the training rows'.
        """
        return []

    def layers(self, depth: int) -> tuple[int, ...]:
        """At attach: which layers `penalty` reads or `steer` moves, 1 to depth; layer L is the output of block L."""
        return ()

    def check(self, anatomy: Anatomy, base: Base) -> None:
        """At attach: refuse, in a sentence, a model that this configuration cannot work with."""

    def steer(self, hidden: Tensor, layer: int, marks: Marks) -> Tensor:
        """In every training forward, and in the reference: the activations (B, T, D) of one of its `layers`.

        `marks` says which positions are real and which predict an answer token. Evaluation and generation are never
        steered.
        """
        return hidden

    def penalty(self, step: Step) -> Tensor:
        """After the forward: a scalar in nats, before `weight`; make it with `step.mean`."""
        raise NotImplementedError

    def project(self, model: Any) -> dict[str, float]:
        """After the last step: change the trained weights in place; numbers to report."""
        return {}


LEVERS = ("curate", "beside", "steer", "penalty", "project")  # `layers` and `check` alone do nothing


def pulled(defense: Defense | type[Defense]) -> tuple[str, ...]:
    """The levers that a defense overrides."""
    kind = defense if isinstance(defense, type) else type(defense)
    return tuple(lever for lever in LEVERS if getattr(kind, lever) is not getattr(Defense, lever))
