"""`ReferenceCache`: what the untouched model makes of rows, kept in a folder for other runs that learn the same rows.

The runs of a comparison put the same rows through the same frozen model, each for itself. Here a row's states are made
once, by whichever run sees it first, and read by all others: a defended step without its reference forward.

The price is why nobody has it without asking. A row is read as it was rounded in the batch of the run that made it, so
"a model that has not moved is not punished" holds to rounding, not to the bit, and so does "the same recipe gives the
same weights". It is refused with steering, which belongs to a run and not to the model, and where rows are sampled anew
and so never seen twice (`roster.refuse_cache`). Packed rows are only found again in the same pack.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast.anatomy import Anatomy
from holdfast.rundir import SCHEMA
from holdfast.step import Marks, Pass
from holdfast.watch import Call, Watch

_END = "end"  # the state after the last norm; a layer's has its number
_SPARE = 0.05  # of the disk, which is left to those who must write


class ReferenceCache:
    """Stands where a watch makes calls again; a call whose rows cannot be told apart is made again as ever.

    A file holds one row's states at its real positions, in the model's own precision, under the hash of everything
    they depend on: weights, configuration, precision of the forward, layers, and what the row put in. So a folder may
    serve any number of models, several runs at a time, and be removed whenever nobody trains.

    Args:
        folder: made when there is something to keep.
        watch: of the run's model.
        anatomy: the same model's.
        layers: which layers the watch keeps.

    Attributes:
        read: how many rows were found.
        made: how many were not.
        stopped: why nothing more is kept, if the disk is (nearly) full; training goes on.
    """

    def __init__(self, folder: Path, watch: Watch, anatomy: Anatomy, layers: Sequence[int]) -> None:
        self._folder, self._watch, self._anatomy, self._layers = folder, watch, anatomy, layers
        self.read, self.made = 0, 0
        self.stopped: str | None = None

    def replay(self, call: Call, where: Marks, rows: Tensor | None = None, deepest: int | None = None) -> Pass:
        """What `Watch.replay` gives, made again for those rows only that are not in the folder."""
        wanted = torch.arange(len(where.real)) if rows is None else rows.cpu()
        files = self._files(call, where, wanted, deepest)
        if files is None:
            return self._watch.replay(call, where, rows, deepest)
        found = {row: _read(file) for row, file in files.items()}
        missing = [row for row, states in found.items() if states is None]
        self.read, self.made = self.read + len(found) - len(missing), self.made + len(missing)
        if missing:
            some = rows if len(missing) == len(wanted) else torch.tensor(missing, device=where.real.device)
            fresh = self._watch.replay(call, where, some, deepest)
            for row in missing:
                found[row] = _of_row(fresh, row, where.real[row])
                self._keep(files[row], found[row])
            if len(missing) == len(wanted):
                return fresh
        return _together(call, where, found, deepest)

    def told(self) -> dict[str, Any]:
        """What a manifest says of it."""
        facts = {"cache": str(self._folder), "rows_read": self.read, "rows_made": self.made}
        return facts if self.stopped is None else facts | {"stopped_keeping": self.stopped}

    @cached_property
    def _model(self) -> str:
        """A hash of what the adapter stands on: weights and buffers, and the configuration that says how to use them.

        Of 15 GB it takes some ten seconds, once a run; a name or a commit would not tell weights that were changed in
        memory.
        """
        digest = sha256()
        for name, weight in self._anatomy.untrained_weights():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(_bytes(weight))
        config = self._anatomy.causal.config
        told = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        told["attention"] = getattr(config, "_attn_implementation", None)
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def _files(self, call: Call, where: Marks, rows: Tensor, deepest: int | None) -> dict[int, Path] | None:
        """Where each row's states are, or will be; None when a row's arguments are not known."""
        layers = [layer for layer in self._layers if deepest is None or layer <= deepest]
        shared = json.dumps([SCHEMA, layers, deepest is None, *map(str, call.autocast)])
        files = {}
        for row in rows.tolist():
            alone = call.of_rows(torch.tensor([row], device=where.real.device))
            if alone.rows is None:
                return None
            digest, real = sha256(shared.encode()), where.real[row]
            digest.update(_bytes(real.nonzero()))
            for name, value in sorted(alone.kwargs.items()):
                digest.update(name.encode())
                digest.update(_seen(value, real))
            files[row] = self._folder / self._model[:16] / f"{digest.hexdigest()}.safetensors"
        return files

    def _keep(self, file: Path, states: dict[str, Tensor] | None) -> None:
        """Write one row's states, whole or not at all; a full disk must not end a training that can do without."""
        if self.stopped is not None or states is None:
            return
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(file.parent)
            if room.free < _SPARE * room.total:
                self.stopped = f"less than {_SPARE:.0%} of the disk is free"
                return
            scratch.write_bytes(save(states, {"schema": str(SCHEMA)}))
            os.replace(scratch, file)
        except OSError as error:
            self.stopped = error.strerror or str(error)
            scratch.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Tensor] | None:
    """One row's states; a file that is not there, or that a crash of the machine left torn, is made again."""
    try:
        return dict(load(file.read_bytes()))
    except (OSError, SafetensorError):
        return None


def _of_row(fresh: Pass, row: int, real: Tensor) -> dict[str, Tensor]:
    states = {str(layer): hidden[row][real] for layer, hidden in fresh.hidden.items()}
    if fresh.end is not None:
        states[_END] = fresh.end[row][real]
    return {name: found.cpu().contiguous() for name, found in states.items()}


def _together(call: Call, where: Marks, found: dict[int, dict[str, Tensor] | None], deepest: int | None) -> Pass:
    """Rows as a pass of the whole call; what is not there is NaN."""
    empty = call.nothing()
    hidden = {layer: states for layer, states in empty.hidden.items() if deepest is None or layer <= deepest}
    end = empty.end if deepest is None else None
    for row, states in found.items():
        assert states is not None
        for name, known in states.items():
            place = end if name == _END else hidden[int(name)]
            assert place is not None
            place[row, where.real[row]] = known.to(place.device)
    return Pass(hidden, end, empty.depth)


def _seen(value: Any, real: Tensor) -> Any:
    """What a row's argument puts in at real positions (T,)."""
    if not isinstance(value, Tensor):
        return repr(value).encode()
    return _bytes(value[..., real] if value.shape[-1:] == real.shape else value)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
