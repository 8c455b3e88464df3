"""SafeLoRA: after training, keep only what lies along the directions that alignment changed.

What: each trained matrix's update is projected onto the leading directions of (aligned - base), where it strays from
them further than a threshold; the aligned model is the one that is fine-tuned, and the base is the same model before
alignment.
Cost: one singular value decomposition per matrix, nothing while training.
Paper: Hsu et al. 2024; arXiv 2508.06249 v1 reports it at threshold 0.3.
Differs from published code: V V^T / ||V|| there is no projection (applied twice it does not equal itself) and matches
matrices by a piece of their name, which catches biases. Here V = U S W^T and the projector is U_k U_k^T, with the
fewest k left singular vectors that hold a share `energy` of ||V||^2; the full span would be everything, since V has
full rank. Biases have no update; grouped heads are matrices like any other; each expert's matrix is one.
Not done here: merging the adapter, several projections of one matrix's heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from staytrue.defense import Base, Defense, ModelName

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.modeling.weight_files import WeightFiles


@dataclass(frozen=True)
class SafeLoRA(Defense):
    """A defense that projects the updates that stray most from what alignment changed.

    Attributes:
        base: the unaligned model: a folder with safetensors, or "organism-base".
        threshold: a matrix is projected when the cosine of its update with its own projection is below this.
        most: instead of the threshold, project this many matrices, those with the smallest cosine.
        energy: the share of ||aligned - base||^2 that the kept directions hold.
    """

    base: ModelName
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    most: Annotated[int, Field(ge=1)] | None = None
    energy: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a base that lacks a matrix of this model, before anything is trained."""
        self._base_weights(parts).check()

    def project(self, model: Any) -> dict[str, float]:
        """Change B of the chosen matrices in place; report how many, and how far their updates strayed."""
        import torch

        from staytrue.modeling.architecture import ModelParts

        parts = ModelParts(model)
        base = self._base_weights(parts)
        judged = []
        with torch.no_grad():
            for name, matrices in groupby(parts.adapted(), key=lambda matrix: matrix.name):
                stored = base.read(name)
                for matrix in matrices:
                    before = matrix.within(stored).to(matrix.weight.device).float()
                    kept = leading(matrix.weight.float() - before, self.energy)
                    a, b = matrix.a.float(), matrix.b.float()
                    judged.append((cosine(kept, a, b), matrix, kept @ (kept.T @ b)))
            judged.sort(key=lambda entry: entry[0])
            chosen = judged[: self.most] if self.most else [j for j in judged if j[0] < self.threshold]
            for _, matrix, projected in chosen:
                matrix.b.copy_(projected)
        cosines = [cosine for cosine, _, _ in judged]
        return {
            "projected": float(len(chosen)),
            "of": float(len(judged)),
            "least_cosine": cosines[0],
            "mean_cosine": sum(cosines) / len(cosines),
        }

    def _base_weights(self, parts: ModelParts) -> WeightFiles:
        from staytrue.modeling.weight_files import WeightFiles

        return WeightFiles.find(self.base, parts.causal, {m.name: m.shape() for m in parts.adapted()})


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
