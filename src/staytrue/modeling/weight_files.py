"""`WeightFiles`: reads single matrices of a model folder by name, without loading the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from staytrue import organism
from staytrue.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of one folder."""

    folder: Path

    @classmethod
    def find(cls, name: str) -> WeightFiles:
        """Find the weights of a folder, or of the organism by name.

        Raises:
            ModelError: the folder does not exist or has no safetensors.
        """
        folder = organism.folder(name) if name in organism.NAMES else Path(name).expanduser()
        if not folder.is_dir() or not any(folder.glob("*.safetensors")):
            raise ModelError(f"{name} is not a model folder with .safetensors weights; give the unaligned model's.")
        return cls(folder)

    def read(self, name: str) -> Tensor:
        """Read one matrix."""
        from safetensors import safe_open

        with safe_open(str(self._file(name)), framework="pt") as opened:
            matrix: Tensor = opened.get_tensor(name)
        return matrix

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a matrix that is missing or has another shape, without reading its values.

        Raises:
            ModelError: a sentence with both shapes.
        """
        from safetensors import safe_open

        with safe_open(str(self._file(name)), framework="pt") as opened:
            stored = tuple(opened.get_slice(name).get_shape())
        if stored != shape:
            raise ModelError(
                f"{name} is {stored} in {self.folder}, but {shape} in the model that is trained; the two are not one "
                "model before and after alignment."
            )

    def _file(self, name: str) -> Path:
        changed = tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(self.folder.glob("*.safetensors")))
        file = _index(self.folder, changed).get(name)
        if file is None:
            raise ModelError(
                f"{self.folder} has no matrix {name}, so there is nothing to compare the trained one with. Give the "
                "unaligned version of the very model that is trained."
            )
        return file


@cache
def _index(folder: Path, changed: tuple[tuple[int, int], ...]) -> dict[str, Path]:
    from safetensors import safe_open

    index: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            index |= dict.fromkeys(opened.keys(), file)
    return index
