"""`ReferenceScope`: the rows and layers of the reference that defenses read; no more of it is computed.

Only defenses that read the reference count (`reads_reference`). `on` names their rows, `layers` the depth: the end of
the model where it names none. A reference of some rows rounds differently from one of the whole batch, so there "a
model that has not moved is not punished" holds to rounding and not to the bit (docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from staytrue.defense import Defense
from staytrue.modeling.block_outputs import real_layers
from staytrue.step import SOURCES, Activations, Marks
from staytrue.training.hooks import RecordedCall, ReferenceReplay


@dataclass(frozen=True)
class ReferenceScope:
    """The rows of one source or all, and the layers down to one or to the end."""

    source: int | None = None  # index into SOURCES; None for every row
    deepest: int | None = None  # a layer; None for the whole model

    @classmethod
    def of(cls, penalties: Mapping[str, Defense], depth: int) -> ReferenceScope:
        """The scope of defenses, by label, on a model with `depth` blocks."""
        sources = {defense.on for defense in penalties.values()}
        one = SOURCES.index(sources.pop()) if len(sources) == 1 and "all" not in sources else None
        layers = [real_layers(d.layers(depth), depth, label) for label, d in penalties.items()]
        deepest = max((max(names) for names in layers if names), default=depth)
        return cls(one, deepest if all(layers) and deepest < depth else None)

    def reference(self, replay: ReferenceReplay, call: RecordedCall, marks: Marks) -> Activations:
        """The reference's activations on a call; NaN in the rows that no defense reads."""
        if self.source is None:
            return replay(call, marks, None, self.deepest)
        rows = marks.source.eq(self.source).any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return call.nothing()
        return replay(call, marks, None if len(rows) == len(marks.source) else rows, self.deepest)
