"""`Defense`: the base class of every defense, with each method that one may override, on one page.

A defense is a frozen dataclass that overrides only the levers it needs: the methods named in `LEVERS`. Its fields are
its configuration, the keys of a recipe, and nothing else. A defense inherits from `Defense` alone.

One rule holds for all: a model that has not moved is not punished. At step 0 every penalty on drift is exactly 0. A
defense that adds rows to be learnt (`teaches`) has no drift to punish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from staytrue.data.examples import Example

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.data.tokenize import Encoded
    from staytrue.modeling.architecture import ModelParts
    from staytrue.modeling.reference_model import AdapterOff
    from staytrue.step import Marks, Step
    from staytrue.utils.console import Progress
    from staytrue.verify.evidence import Evidence

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # times a penalty in nats per token
ModelName = Annotated[str, "a model: a folder, relative to the recipe's, or a name"]
Share = Annotated[float, Field(gt=0, le=1)]  # added rows as a fraction of the task rows
Rows = Literal["task", "interleaved", "all"]  # training rows by their source


class Base(Protocol):
    """The untouched model and facts about the run, loaded when first used.

    Attributes:
        task_rows: how many task rows the run trains on, counting repeats; None where that is not known.
        progress: shows how far a preparation is that takes long; None shows nothing.
    """

    task_rows: int | None
    progress: Progress | None

    def answers(
        self, prompts: Sequence[Example], seed: int, max_new_tokens: int = 256, only: Sequence[int] | None = None
    ) -> list[Example]:
        """Prompts with one answer each, sampled from the untouched model at temperature 1.

        Args:
            prompts: conversations that end before an answer.
            seed: an answer depends on it, on the prompt and on the prompt's number alone.
            max_new_tokens: the longest answer.
            only: numbers of the prompts to answer, in the order wanted back; None for all.

        Returns:
            The answered prompts, without those whose answer is empty.
        """
        ...

    def keep(self, name: str, make: Callable[[], list[Example]]) -> list[Example]:
        """Rows that are made once a run: kept as `NAME.jsonl` in its folder, and read there when the run goes on."""
        ...

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """The number of tokens of each row."""
        ...

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids and labels of each row, as the trainer would see them."""
        ...

    def takes_system(self) -> bool:
        """Whether the model's chat template has a system turn."""
        ...

    def evaluation_questions(self) -> frozenset[str]:
        """Every question of the run's evaluation; no training row may teach an answer to one."""
        ...

    def identity(self) -> str | None:
        """The model's hash or commit; None where it is not known."""
        ...

    def use(self, reference: AdapterOff) -> None:
        """Answer prompts with the reference that the user chose."""
        ...

    def note(self, name: str, value: float | str) -> None:
        """Write a fact about the data into the run's manifest."""
        ...


@dataclass(frozen=True)
class Traces:
    """The traces of a defense in rows and activations: a run measures them, and `staytrue verify` checks them.

    Attributes:
        text: what `curate` writes into rows; a run counts the rows that the model reads with it.
        directions: by layer (1 to depth), the direction (D,) that `steer` moves along; a run projects the shift on it.
    """

    text: str | None = None
    directions: Mapping[int, Tensor] = field(default_factory=dict)


class Defense:
    """One way to keep a model's character while it is fine-tuned. Override at least one of `LEVERS`.

    The methods stand in the order in which a run calls them. Keep nothing on the object between calls: a defense is a
    description. What is computed once goes through `prepare`.

    Attributes:
        weight: multiplies the penalty in the loss. Every defense with a `penalty` has it as a field.
        share: rows added by `beside`, as a fraction of the task rows. Every defense with `beside` has it as a field.
        on: the training rows that `penalty` reads. Declare it as a field of type `Rows` to let a recipe choose.
        reads_reference: whether `penalty` reads `step.reference` (`step.divergence` does). Where it is False the
            defense costs no forward of the reference, and takes no part in deciding how much of it is computed.
        reads_start: whether `penalty` reads `step.changed`, the weights before full fine-tuning.
        teaches: whether the defense adds rows whose answers are learnt; its penalty may then be above 0 at step 0.
    """

    weight: float
    share: float
    on: str = "all"
    reads_reference: ClassVar[bool] = True
    reads_start: ClassVar[bool] = False
    teaches: ClassVar[bool] = False

    @classmethod
    def name(cls) -> str:
        """Its name in recipes and logs: the file's name, or the class's for a defense of your own."""
        folder, _, file = cls.__module__.rpartition(".")
        return file if folder == "staytrue.defenses" else cls.__name__.lower()

    def curate(self, examples: list[Example], base: Base, seed: int) -> list[Example]:
        """Before training: return the training rows, edited or with rows added. Change only the sources you mean to."""
        return examples

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Before training: return auxiliary rows, fed beside the batch at `share` of the task rows.

        They never enter the task's loss; `penalty` then gets *their* step instead of the training rows'.
        """
        return []

    def layers(self, depth: int) -> tuple[int, ...]:
        """At attach: the layers that `penalty` reads or `steer` moves, 1 to depth; layer L is the output of block L."""
        return ()

    def freeze(self, depth: int) -> tuple[int, ...]:
        """At attach: the layers, 1 to depth, that are not trained."""
        return ()

    def check(self, parts: ModelParts, base: Base) -> None:
        """At attach: raise `ModelError` for a model that this configuration cannot work with.

        `staytrue check` calls it, too, for a model without weights (`parts.is_empty`).
        """

    def prepare(self, parts: ModelParts, base: Base) -> Any:
        """After attach: compute once what `penalty` needs at every step; it comes back as `step.state`.

        Where that takes long, show it by `base.progress`.
        """
        return None

    def steer(self, hidden: Tensor, layer: int, marks: Marks) -> Tensor:
        """In every training forward, and in the reference: return the activations (B, T, D) of one of its `layers`.

        `marks` holds masks of the real positions and of those that predict an answer token. Evaluation and
        generation are never steered.
        """
        return hidden

    def penalty(self, step: Step) -> Tensor:
        """After the forward: return a scalar in nats, before `weight`; make it with `step.mean` or `step.once`."""
        raise NotImplementedError

    def combine(self, task: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
        """Before the optimizer step: return the gradient to use, one tensor for each trained weight.

        Overriding it keeps the gradient of this defense's weighted penalty apart, which must be one on rows of
        `beside`. Both gradients are those of the whole optimizer step.

        Args:
            task: the gradient of everything else in the loss.
            own: the gradient of this defense's weighted penalty; zeros where none of its rows was due.
        """
        return [g + a for g, a in zip(task, own, strict=True)]

    def project(self, model: Any) -> dict[str, float]:
        """After the last step: change the trained weights in place; return numbers to report.

        An override may have two more parameters: `progress`, a `Progress` of `utils.console` or None, to show how far
        it is; and `say`, to call with a sentence about what it did.
        """
        return {}

    def traces(self, depth: int) -> Traces:
        """At attach: what the run should measure beside what it measures of every method."""
        return Traces()

    def evidence(self, run: Evidence) -> list[str]:
        """After the run, from its files: return what shows that this defense did not act, a sentence each.

        `staytrue verify` checks every overridden method by itself (a penalty's weight in the gradient, the share of
        rows, frozen weights); override it for what only this defense knows.
        """
        return []


# What a defense may override to have an effect; `layers`, `check` and `prepare` alone have none.
LEVERS = ("curate", "beside", "freeze", "steer", "penalty", "combine", "project")


def pulled(defense: Defense | type[Defense]) -> tuple[str, ...]:
    """The levers that a defense overrides."""
    kind = defense if isinstance(defense, type) else type(defense)
    return tuple(lever for lever in LEVERS if getattr(kind, lever) is not getattr(Defense, lever))
