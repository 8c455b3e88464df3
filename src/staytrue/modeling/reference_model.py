"""The reference model: the model before training, which penalties compare the trained model with.

With an adapter it is the trained model itself, its adapter switched off, at no memory. With full fine-tuning it is a
frozen copy that is made before the first step. The copy is not among the trained model's modules, so it is neither
saved nor seen by an optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor

from staytrue.errors import ForwardPassError, ModelError
from staytrue.modeling.architecture import Changed, ModelParts
from staytrue.modeling.lm_head import Head
from staytrue.modeling.sharded import gathered


class AdapterOff:
    """The trained model with its adapter switched off.

    Attributes:
        parts: the parts of the model that is called while `active`.
        is_copy: whether `parts` are of another model than the trained one.
        bytes: the memory of that other model's weights.
    """

    is_copy = False
    bytes = 0

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run with `parts` as they were before training."""
        with self.parts.untrained():
            yield

    def is_running(self) -> bool:
        """Return whether the modules of `parts` compute as the reference now."""
        return any(getattr(module, "disable_adapters", False) for module in self.parts.switches[:1])

    def head(self) -> Head | None:
        """Return the head of the reference; None where the trained model shares it."""
        return None

    def weights(self) -> list[Tensor]:
        """Return every weight that the reference computes with; none of them is trained."""
        added = self.parts.added
        return [weight for weight in self.parts.causal.parameters() if id(weight) not in added]

    def changed(self) -> list[Changed]:
        """Return every trained weight beside its value before; [] with an adapter, see `ModelParts.adapted`."""
        return []


class FrozenCopy(AdapterOff):
    """A copy of a model that trains its own weights: same precision, evaluation mode, no gradients.

    A user's forward hooks are copied with it, since a hook may be a part of what the model computes: without them the
    copy would be another model. A hook that only records sees the copy's passes too, as with an adapter.
    """

    is_copy = True

    def __init__(self, parts: ModelParts) -> None:
        self._trained = parts
        try:
            causal = copy.deepcopy(parts.causal)
        except TypeError as error:
            raise ModelError(
                f"The model cannot be copied, and its copy is the reference of the defenses: {error}. A hook on the "
                "model may hold what cannot be copied; add it after the trainer is made, or train an adapter."
            ) from None
        vars(causal).pop("forward", None)  # a trainer's patch of the trained model's forward
        self._freeze(causal)

    def _freeze(self, causal: Any) -> None:
        super().__init__(ModelParts(causal.requires_grad_(False).eval()))
        self.bytes = sum(weight.nbytes for weight in causal.parameters())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run on the device that the trained model is on now."""
        device = next(self._trained.backbone.parameters()).device
        if next(self.parts.backbone.parameters()).device != device:
            self.parts.causal.to(device)
        yield

    def is_running(self) -> bool:
        """Return True: nothing else calls the copy."""
        return True

    def head(self) -> Head | None:
        """Return the copy's own head; that of the trained model was checked, which is the same."""
        return self._head

    @cached_property
    def _head(self) -> Head:
        return self.parts.head_by_config()

    def changed(self) -> list[Changed]:
        """Return every trained weight, of the trained model, beside the copy's."""
        before = dict(self.parts.causal.named_parameters())
        trained = self._trained.causal.named_parameters()
        return [Changed(name, gathered(weight), before[name]) for name, weight in trained if weight.requires_grad]


class NoReference(AdapterOff):
    """The reference of a model that trains its own weights, where no defense reads one, so that no copy is made."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Refuse.

        Raises:
            ForwardPassError: always.
        """
        raise ForwardPassError(
            "A defense reads the reference although it declares reads_reference = False, so no copy of the model was "
            "made before training. Declare reads_reference = True."
        )
        yield
