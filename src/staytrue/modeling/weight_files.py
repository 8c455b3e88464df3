"""`WeightFiles`: reads single matrices of a model folder by the names that they have in a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue import organism
from staytrue.errors import ModelError
from staytrue.modeling import fetch
from staytrue.modeling.model_folder import FROM_HUB, check_weights_folder
from staytrue.utils.validation import in_one_line

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of one folder.

    Matrices are read one by one. Where transformers renames or joins them as it loads a model (experts, some vision
    models), the folder is loaded whole, into host memory.
    """

    folder: Path
    like: Any  # a loaded transformers model of the same kind
    shapes: Mapping[str, tuple[int, ...]]  # of the matrices that will be read, by their names in that model

    @classmethod
    def find(cls, name: str, like: Any, shapes: Mapping[str, tuple[int, ...]]) -> WeightFiles:
        """Find the weights of a folder, a hub name, or of the organism or the fetched model by name.

        Raises:
            ModelError: the folder does not exist, has no safetensors, or is refused; or the hub does not give the
                model.
        """
        folder = organism.folder(name) if name in organism.NAMES else Path(name).expanduser()
        passing = frozenset[str]()
        if name == fetch.NAME and not folder.exists():
            folder = fetch.folder()
        elif cls.is_on_hub(name):
            folder, passing = _downloaded(name), FROM_HUB
        if not folder.is_dir() or not any(folder.glob("*.safetensors")):
            raise ModelError(f"{name} is not a model folder with .safetensors weights; give the unaligned model's.")
        if name not in organism.NAMES:
            check_weights_folder(folder, but=passing)
        return cls(folder, like, shapes)

    @staticmethod
    def is_on_hub(name: str) -> bool:
        """Whether a name is one on the hub, and neither a folder nor one of our own models."""
        ours = name in (*organism.NAMES, fetch.NAME)
        local = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).expanduser().exists()
        return not ours and not local

    def read(self, name: str) -> Tensor:
        """Read one matrix."""
        from safetensors import safe_open

        if not self.has_each_matrix:
            return self._in_memory[name]
        with safe_open(str(self._index()[name]), framework="pt") as opened:
            matrix: Tensor = opened.get_tensor(name)
        return matrix

    def check(self) -> None:
        """Refuse a folder in which a matrix is missing or has another shape, without reading values.

        Raises:
            ModelError: a sentence with both shapes.
        """
        stored = self._stored_shapes() if self.has_each_matrix else self._loaded_shapes()
        for name, shape in self.shapes.items():
            if name not in stored:
                raise ModelError(
                    f"{self.folder} has no matrix {name}, so there is nothing to compare the trained one with. Give "
                    "the unaligned version of the very model that is trained."
                )
            if stored[name] != shape:
                raise ModelError(
                    f"{name} is {stored[name]} in {self.folder}, but {shape} in the model that is trained; the two "
                    "are not one model before and after alignment."
                )

    def is_copy(self, other: WeightFiles | None) -> bool:
        """Return whether another folder has the same matrices, but for rounding; stops at the first that differs.

        False where a folder has them under other names or in another form (experts, packed 4-bit weights), since it
        would have to be loaded whole.
        """
        from staytrue.modeling.rounding import only_rounded

        if other is None or not (self.has_each_matrix and other.has_each_matrix):
            return False
        return all(only_rounded(self.read(name), other.read(name)) for name in self.shapes)

    @property
    def has_each_matrix(self) -> bool:
        """Whether the files have every matrix under its name in the model."""
        return self.shapes.keys() <= self._index().keys()

    @cached_property
    def _in_memory(self) -> dict[str, Tensor]:
        return dict(self._load("cpu")[0].named_parameters(remove_duplicate=False))

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        from safetensors import safe_open

        shapes = {}
        for name in self.shapes:
            with safe_open(str(self._index()[name]), framework="pt") as opened:
                shapes[name] = tuple(opened.get_slice(name).get_shape())
        return shapes

    def _loaded_shapes(self) -> dict[str, tuple[int, ...]]:
        model, report = self._load("meta")
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)}
        shapes |= {name: tuple(stored) for name, stored, _ in report["mismatched_keys"]}
        return {name: shape for name, shape in shapes.items() if name not in report["missing_keys"]}

    def _load(self, device: str) -> tuple[Any, dict[str, Any]]:
        """Return the folder as transformers loads it, and its report of missing and mismatched matrices."""
        try:
            model, report = type(self.like).from_pretrained(
                str(self.folder),
                config=deepcopy(self.like.config),
                dtype=self.like.dtype,
                device_map=device,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # anything from OSError to SafetensorError
            raise ModelError(
                f"The model {self.folder} cannot be loaded: {str(error).strip().splitlines()[0]}"
            ) from None
        return model, report

    def _index(self) -> dict[str, Path]:
        changed = tuple((f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(self.folder.glob("*.safetensors")))
        return _index(self.folder, changed)


def _downloaded(name: str) -> Path:
    """The folder of a hub model's weights in the user's cache, fetched where they are missing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        reason = in_one_line(error).rstrip(".")
        raise ModelError(
            f"{name} is no folder here, and the hub does not give such a model: {reason}. Check the name."
        ) from None


@cache
def _index(folder: Path, changed: tuple[tuple[int, int], ...]) -> dict[str, Path]:
    from safetensors import safe_open

    index: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            index |= dict.fromkeys(opened.keys(), file)
    return index
