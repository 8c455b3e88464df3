"""`ReferenceCache`: the reference's activations on rows, kept in a folder for later runs on the same rows.

The runs of a comparison put the same rows through the same frozen model. With a cache the first run that sees a row
computes its activations, and all others read them: a defended step without a reference forward.

It is off by default because of its price. A row is read as it was rounded in the batch of the run that computed it, so
"a model that has not moved is not punished" holds to rounding, not to the bit, and so does "the same recipe gives the
same weights". It is refused with steering, which belongs to a run and not to the model, and where rows are sampled anew
and so never seen twice (`cache_checks`); for packed rows; and for models whose states of a row depend on more than the
row (`fingerprint.check`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.architecture import ModelParts
from staytrue.step import Activations, Marks
from staytrue.training.hooks import BackboneHooks, RecordedCall
from staytrue.training.reference import fingerprint, state_file
from staytrue.training.reference.fingerprint import data
from staytrue.utils.run_dir import SCHEMA

_END = "end"  # the state after the last norm; a layer's has its number


class ReferenceCache:
    """A cache in place of `BackboneHooks.replay`; a call whose rows cannot be divided is repeated whole.

    A file holds one row's states at its real positions, in the model's own precision, under the hash of everything
    they depend on: the model, the precision of the forward, layers, and the row's inputs. So a folder may serve any
    number of models and several runs at a time. Remove it only while no run trains.

    Args:
        folder: created with the first row.
        hooks: of the run's model.
        parts: the same model's.
        layers: which layers the hooks record.

    Attributes:
        read: how many rows were read from files, counted at every reading.
        computed: how many rows were computed.
        whole: how many calls were repeated whole.
        stopped: why no more rows are written, after a failed write; training goes on.

    Raises:
        ModelError: the cache cannot serve this model.
    """

    def __init__(self, folder: Path, hooks: BackboneHooks, parts: ModelParts, layers: Sequence[int]) -> None:
        fingerprint.check(parts)
        self._folder, self._hooks, self._parts, self._layers = folder, hooks, parts, layers
        self.read, self.computed, self.whole = 0, 0, 0
        self.stopped: str | None = None

    def replay(
        self, call: RecordedCall, where: Marks, rows: Tensor | None = None, deepest: int | None = None
    ) -> Activations:
        """The activations that `BackboneHooks.replay` returns, computed only for rows that are not in the folder."""
        real = where.real.cpu()
        needed = torch.arange(len(real)) if rows is None else rows.cpu()
        files = self._files(call, real, needed, deepest)
        if files is None:
            self.whole += 1
            return self._hooks.replay(call, where, rows, deepest)
        states_of = {row: state_file.read(file) for row, file in files.items()}
        missing = [row for row, states in states_of.items() if states is None]
        self.read, self.computed = self.read + len(states_of) - len(missing), self.computed + len(missing)
        if missing:
            some = rows if len(missing) == len(needed) else torch.tensor(missing, device=where.real.device)
            fresh = self._hooks.replay(call, where, some, deepest)
            for row in missing:
                states_of[row] = states = _of_row(fresh, row, real[row])
                self._keep(files[row], states)
            if len(missing) == len(needed):
                return fresh
        return _together(call, real, states_of, deepest)

    def describe(self) -> dict[str, Any] | None:
        """Facts for the run's manifest; None if no reference was read."""
        if not (self.read or self.computed or self.whole):
            return None
        facts: dict[str, Any] = {"cache": str(self._folder), "rows_read": self.read, "rows_made": self.computed}
        facts |= {"calls_made_whole": self.whole} if self.whole else {}
        return facts | ({"stopped_keeping": self.stopped} if self.stopped else {})

    @cached_property
    def _model(self) -> str:
        return fingerprint.of_model(self._parts)

    def _files(self, call: RecordedCall, real: Tensor, rows: Tensor, deepest: int | None) -> dict[int, Path] | None:
        """The file of each row's states, which may not exist yet; None when a row's arguments are not known."""
        inputs = call.by_row()
        if inputs is None:
            return None
        present = ((name, value) for name, value in sorted(inputs.items()) if value is not None)
        inputs = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in present}
        layers = [layer for layer in self._layers if deepest is None or layer <= deepest]
        shared = json.dumps([SCHEMA, self._model, layers, deepest is None, *map(str, call.autocast)])
        files = {}
        for row in rows.tolist():
            digest = sha256(shared.encode())
            digest.update(data(real[row].nonzero()))
            for name, value in inputs.items():
                digest.update(name.encode())
                digest.update(_row_bytes(value, row, real))
            files[row] = self._folder / self._model[:16] / f"{digest.hexdigest()}.safetensors"
        return files

    def _keep(self, file: Path, states: dict[str, Tensor]) -> None:
        """Write one row's states; training goes on without the cache when the disk is full."""
        if self.stopped is not None:
            return
        try:
            state_file.write(file, states)
        except FileNotFoundError:  # the folder was removed just now; the next row creates it again
            return
        except OSError as error:
            self.stopped = error.strerror or str(error)


def _of_row(fresh: Activations, row: int, real: Tensor) -> dict[str, Tensor]:
    states = {str(layer): hidden[row] for layer, hidden in fresh.hidden.items()}
    if fresh.end is not None:
        states[_END] = fresh.end[row]
    return {name: state.cpu()[real].contiguous() for name, state in states.items()}


def _together(
    call: RecordedCall, real: Tensor, states_of: dict[int, dict[str, Tensor] | None], deepest: int | None
) -> Activations:
    """Rows as activations of the whole call: 0 at padding, NaN for rows that were not requested."""
    empty = call.nothing()
    hidden = {layer: states for layer, states in empty.hidden.items() if deepest is None or layer <= deepest}
    end = empty.end if deepest is None else None
    for row, states in states_of.items():
        assert states is not None
        for name, known in states.items():
            place = end if name == _END else hidden[int(name)]
            assert place is not None
            spread = known.new_zeros(len(real[row]), *known.shape[1:])
            spread[real[row]] = known
            place[row] = spread.to(place.device)
    return Activations(hidden, end, empty.depth)


def _row_bytes(value: Any, row: int, real: Tensor) -> Any:
    """An argument's bytes for one row, at its real positions; real is (B, T)."""
    if not isinstance(value, Tensor):
        return repr(value).encode()
    entry = value[row] if len(value) == len(real) else value[0]
    return data(entry[..., real[row]] if entry.shape[-1:] == real[row].shape else entry)
