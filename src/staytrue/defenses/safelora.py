"""SafeLoRA: after training, keep only what lies along the directions that alignment changed.

What: each trained matrix's update is projected onto the leading directions of (aligned - base), where it strays from
them further than a threshold; the aligned model is the one that is fine-tuned, and the base is the same model before
alignment.
Cost: one singular value decomposition per matrix, nothing while training.
Paper: Hsu et al. 2024; arXiv 2508.06249 v1 reports it at threshold 0.3.
Differs from published code: V V^T / ||V|| there is no projection (applied twice it does not equal itself) and matches
matrices by a piece of their name, which catches biases. Here V = U S W^T and the projector is U_k U_k^T, with the
fewest k left singular vectors that hold a share `energy` of ||V||^2; the full span would be everything, since V has
full rank. Biases have no update; grouped heads are matrices like any other; each expert's matrix is one. A matrix that
alignment did not change, or not by more than rounding to another precision does, has no such directions and is left as
it was trained. Weights that are rounded to few values, such as unpacked 4-bit ones, are refused: the rounding hides
what alignment did.
Without the model before alignment (many releases have none) there is nothing to project on: leave this defense out.
Not done here: full fine-tuning, merging the adapter, several projections of one matrix's heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from staytrue.defense import Base, Defense, ModelName
from staytrue.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import Adapted, ModelParts
    from staytrue.modeling.weight_files import WeightFiles
    from staytrue.utils.console import Progress
    from staytrue.verify.evidence import Evidence

_LOOKED_AT = 8  # matrices; formats of mixed precision keep some in more bits
_WHOLE = 1 - 1e-6  # a cosine from which a projection changes nothing


@dataclass(frozen=True)
class SafeLoRA(Defense):
    """A defense that projects the updates that stray most from what alignment changed.

    Attributes:
        base: the model before alignment: a folder with safetensors, a hub name, or "organism-base"; without such a
            model leave safelora out.
        threshold: a matrix is projected when the cosine of its update with its own projection is below this, above 0.
        most: instead of the threshold, project this many matrices, those with the smallest cosine.
        energy: the share of ||aligned - base||^2 that the kept directions hold.
    """

    base: ModelName
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.3
    most: Annotated[int, Field(ge=1)] | None = None
    energy: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a `most` without effect, weights of few bits, and a base without a matrix or with the same weights."""
        from staytrue.modeling.model_source import is_loaded_from
        from staytrue.modeling.weight_files import WeightFiles

        matrices = _matrices(parts)
        self._refuse_most(len(matrices))
        if parts.is_empty and WeightFiles.is_on_hub(self.base):  # not downloaded for a check of the recipe
            same = is_loaded_from(self.base, parts.causal.config)
        else:
            weights = WeightFiles.find(self.base, parts.causal, {m.name: m.shape() for m in matrices})
            weights.check()
            own = _files(parts, weights)
            _refuse_rounded(matrices, own, weights)
            if parts.is_empty:
                same = is_loaded_from(str(weights.folder), parts.causal.config) or weights.is_copy(own)
            else:  # stops at the first that differs
                same = all(not bool(moved.any()) for _, moved in _changes(parts, weights))
        if same:
            raise ModelError(
                f"safelora: the base {self.base} has the same weights in all matrices that are adapted, but for "
                "rounding to the precision that they are stored in, so alignment changed nothing in them, and there "
                "are no directions to project on. Name the model before alignment, or leave safelora out."
            )

    def _refuse_most(self, matrices: int) -> None:
        """Refuse `most` beside a threshold, which it would replace, and above the number of matrices."""
        if self.most is not None and self.threshold != SafeLoRA.threshold:
            raise RecipeError(
                f"safelora: most is {self.most}, which projects so many matrices instead of those below threshold "
                f"{self.threshold:g}. Take one of them out."
            )
        if self.most is not None and self.most > matrices:
            raise RecipeError(
                f"safelora: most is {self.most}, and {matrices} matrices are adapted. Lower most, or take it out to "
                "choose by `threshold`."
            )

    def project(
        self, model: Any, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None
    ) -> dict[str, float]:
        """Change B of the chosen matrices in place; report and say how many, and how far their updates strayed."""
        import torch

        from staytrue.modeling.architecture import ModelParts

        parts, judged = ModelParts(model), []
        if progress is not None:
            progress.begin(len(_matrices(parts)), "matrix")
        with torch.no_grad():
            for number, (matrix, moved) in enumerate(_changes(parts, self._base_weights(parts)), start=1):
                if bool(moved.any()):
                    kept = leading(moved, self.energy)
                    a, b = matrix.a.float(), matrix.b.float()
                    judged.append((cosine(kept, a, b), matrix, kept @ (kept.T @ b)))
                if progress is not None:
                    progress.step(number, {})
            judged.sort(key=lambda entry: entry[0])
            chosen = judged[: self.most] if self.most else [j for j in judged if j[0] < self.threshold]
            for _, matrix, projected in chosen:
                matrix.b.copy_(projected)
        cosines = [cosine for cosine, _, _ in judged]
        report = {
            "projected": float(len(chosen)),
            "of": float(len(judged)),
            "unchanged": float(len(_matrices(parts)) - len(judged)),
            "least_cosine": cosines[0],
            "mean_cosine": sum(cosines) / len(cosines),
        }
        say(self._sentence(report))
        return report

    def _sentence(self, report: Mapping[str, float]) -> str:
        """Say how many matrices were projected, and what to do where none was."""
        line = f"safelora projected {report['projected']:.0f} of {report['of']:.0f} matrices that alignment changed"
        line += f", and left alone {report['unchanged']:.0f} that it did not." if report["unchanged"] else "."
        if report["projected"]:
            return line
        if report["least_cosine"] > 1 - 1e-6:
            return f"{line} Nothing was changed: every update lies in the directions that are kept."
        return (
            f"{line} Nothing was changed: the least cosine is {report['least_cosine']:.3g}, and `threshold` is "
            f"{self.threshold:g}. Raise `threshold` above that, or name as `base` the model before alignment."
        )

    def evidence(self, run: Evidence) -> list[str]:
        """Return how the number of projected matrices, or the change of the weights, does not fit what it reported."""
        numbers, change = run.projected, run.own.get("change") or 0.0
        count, of = numbers.get("projected", 0.0), numbers.get("of", 0.0)
        needed = min(self.most, of) if self.most else float(numbers.get("least_cosine", 1.0) < self.threshold)
        if count < max(needed, 1):
            least = numbers.get("least_cosine", 1.0)
            limit = "" if self.most else f", and `threshold` is {self.threshold:g}"
            return [f"{count:.0f} of {of:.0f} matrices were projected; the least cosine is {least:.3g}{limit}"]
        if change == 0 and numbers["least_cosine"] < _WHOLE:
            return [f"it reported {count:.0f} projected matrices, but no weight changed"]
        return []

    def _base_weights(self, parts: ModelParts) -> WeightFiles:
        from staytrue.modeling.weight_files import WeightFiles

        return WeightFiles.find(self.base, parts.causal, {m.name: m.shape() for m in _matrices(parts)})


def _matrices(parts: ModelParts) -> list[Adapted]:
    """The matrices that the adapter changes.

    Raises:
        ModelError: there is no adapter, or it is on quantised weights.
    """
    from staytrue.modeling.quantized import is_packed

    if not parts.has_adapter:
        raise ModelError(
            "safelora projects the update of a LoRA adapter, and this training has none: all weights are trained. "
            "Write `lora: {}` (in a script, give a peft_config), or leave safelora out."
        )
    matrices = parts.adapted()
    packed = next((matrix.name for matrix in matrices if is_packed(matrix.weight)), None)
    if packed is not None:
        raise ModelError(
            f"safelora: {packed} is quantised, so its difference from the base would be mostly rounding, not what "
            "alignment changed. Load the model without quantisation, or leave safelora out."
        )
    return matrices


def _changes(parts: ModelParts, base: WeightFiles) -> Iterator[tuple[Adapted, Tensor]]:
    """Yield each adapted matrix with what alignment changed in it, (out, in) float32; zeros for mere rounding."""
    from staytrue.modeling.rounding import only_rounded

    for name, matrices in groupby(_matrices(parts), key=lambda matrix: matrix.name):
        stored = base.read(name)
        for matrix in matrices:
            weight, before = matrix.weight.detach(), matrix.within(stored).to(matrix.weight.device)
            moved = weight.float() - before.to(weight.dtype).float()
            yield matrix, moved.zero_() if only_rounded(weight, before) else moved


def _refuse_rounded(matrices: Sequence[Adapted], own: WeightFiles | None, base: WeightFiles) -> None:
    """Refuse weights that are rounded to few values, by the first matrices of both models.

    Args:
        matrices: the adapted ones.
        own: the files of the trained model, where it is not loaded and they are known.
        base: the files of the model before alignment.

    Raises:
        ModelError: the matrix, whose it is, and the way out.
    """
    from staytrue.modeling.rounding import has_few_values

    for matrix in matrices[:_LOOKED_AT]:
        trained = own.read(matrix.name) if own else matrix.weight
        for owner, values in (("the trained model", trained), (f"the base {base.folder}", base.read(matrix.name))):
            if not values.is_meta and has_few_values(values):
                raise ModelError(
                    f"safelora: {matrix.name} of {owner} is rounded to few values, as in a format of 4 to 8 bits that "
                    "was unpacked, so its difference from the other model would be mostly rounding, not what alignment "
                    "changed. Take the original weights (`staytrue fetch smollm2 --hub` has SmolLM2's), or leave "
                    "safelora out."
                )


def _files(parts: ModelParts, base: WeightFiles) -> WeightFiles | None:
    """The weight files of a model that is not loaded; None of one that is, or where no folder has each matrix."""
    place = parts.causal.config.name_or_path  # "" in the text part of a configuration of several
    if not parts.is_empty or not place or not Path(place).is_dir():
        return None
    own = replace(base, folder=Path(place))
    return own if own.has_each_matrix else None


def leading(moved: Tensor, energy: float) -> Tensor:
    """Compute the fewest left singular vectors (out, k) of a matrix that hold `energy` of its squared norm."""
    import torch

    left, sizes, _ = torch.linalg.svd(moved, full_matrices=False)
    held = sizes.square().cumsum(0) / sizes.square().sum().clamp(min=torch.finfo(sizes.dtype).tiny)
    kept: Tensor = left[:, : int((held < energy - 1e-6).sum()) + 1]
    return kept


def cosine(kept: Tensor, a: Tensor, b: Tensor) -> float:
    """Compute cos(P BA, BA), P = kept kept^T: 1 when the update lies in the kept directions, also for no update."""
    update = b @ a
    size = update.norm()
    return 1.0 if size == 0 else float((kept.T @ update).norm() / size)
