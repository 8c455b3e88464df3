"""L2 to the start: the weights may not move far from the loaded model's.

What: the squared length of the adapter's update, `||scale * B A||_F^2` summed over matrices, is added to the loss; with
full fine-tuning that of the change of every trained weight, `||W - W0||^2`. With `fisher`, a file of conversations,
each weight's change counts by how much those answers depend on it (elastic weight consolidation, EWC).
Cost: products of the small matrices A and B only; no rows and no reference forward. With full fine-tuning a copy of the
model is kept, and every weight is read once. With `fisher`: once, one backward pass per row of the file; at every
micro-batch, one matrix product per adapted matrix; and memory as large as the adapted matrices.
Source: L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483) and EWC (Kirkpatrick et al. 2017, arXiv 1612.00796,
equation 3); no published result on emergent misalignment is claimed.
**It can make misalignment broader**: on the organism 96 % of the general answers are misaligned at the default weight,
where undefended 45 % are; at some other weights it depends on the seed (docs/log.md). On SmolLM2 it costs more learning
than it takes off (docs/real-models.md). It is here to be compared with, not to rely on.
Without `fisher` the weight multiplies a plain sum of squares, as L2-SP defines it, so one weight does not mean the same
for models of other sizes: choose it anew for each model, by its part of the loss, which is `weight` times `l2init`
beside `task_loss` in metrics.jsonl.
The start is the loaded model, where the update is zero; no copy of a start is kept. A second training of an adapter
(`reference: base`) is pulled towards the model without it. Adapters that change the base weights (PiSSA, OLoRA) are
refused.
Differs from the papers: with an adapter, the penalty is on the update of each adapted matrix rather than on all
weights; with full fine-tuning it is on all trained weights, as in the papers (L2-SP halves the sum). With `fisher` the
estimate is divided by the number of answer tokens, so that the penalty approximates a KL divergence in nats per token
on those rows; it is the empirical Fisher information, from the file's own answers instead of sampled ones.
Not done here: with an adapter, the Fisher information of biases, norms and embeddings; quantised weights; an online
estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from staytrue.data.examples import read_examples
from staytrue.defense import Base, Defense, Weight
from staytrue.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.data.tokenize import Encoded
    from staytrue.modeling.architecture import Adapted, Changed, ModelParts
    from staytrue.step import Step
    from staytrue.utils.console import Progress


@dataclass(frozen=True)
class L2Init(Defense):
    """A penalty on the squared length of the change; with `fisher`, half its square weighted by Fisher information.

    Attributes:
        weight: times the penalty in the loss.
        fisher: a JSONL file of {"messages": [...]} rows whose answers are to be kept; without it all
            weights count alike.
    """

    reads_reference: ClassVar[bool] = False
    reads_start: ClassVar[bool] = True

    weight: Weight = 0.01
    fisher: Path | None = None

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse an adapter that is not LoRA; with `fisher`, quantised weights, mixtures of experts and faulty rows."""
        matrices = parts.adapted() if parts.has_adapter else []
        stacked = next((m.name for m in matrices if m.experts is not None), None)
        if self.fisher is not None and stacked is not None:
            raise ModelError(
                f"l2init: {stacked} holds the matrices of several experts, and their Fisher information is not "
                "implemented. Leave `fisher` out, or adapt attention only (lora.targets)."
            )
        packed = next((m.name for m in matrices if not m.weight.is_floating_point()), None)
        if self.fisher is not None and packed is not None:
            raise ModelError(
                f"l2init: {packed} is quantised, so it has no gradient to estimate the Fisher information from. Load "
                "the model without quantisation, or leave `fisher` out."
            )
        if self.fisher is not None:
            self._rows(self.fisher, base)

    def prepare(self, parts: ModelParts, base: Base) -> list[Tensor] | None:
        """Compute the diagonal Fisher information of every adapted matrix or trained weight; None without `fisher`."""
        if self.fisher is None:
            return None
        encoded = self._rows(self.fisher, base)
        base.note("l2init/fisher_rows", len(encoded))
        return fisher(parts, encoded, base.progress)

    def _rows(self, file: Path, base: Base) -> list[Encoded]:
        """Read and encode the rows of `fisher`, without evaluation questions."""
        rows = [row for row in read_examples(file) if row.question not in base.evaluation_questions()]
        encoded = [row for row in base.encode(rows) if any(label != -100 for label in row.labels[1:])]
        if not encoded:
            raise RecipeError(
                f"l2init: {file} has no row with an answer beside evaluation questions, which are left out. Give "
                "`fisher` a file with other rows."
            )
        return encoded

    def penalty(self, step: Step) -> Tensor:
        """Sum over the matrices, or over all trained weights; counted once for the optimizer step."""
        import torch

        total = step.policy.final.new_zeros((), dtype=torch.float32)
        updates: Sequence[Adapted | Changed] = step.changed or step.adapted
        with torch.autocast(total.device.type, enabled=False):
            for update, weights in zip(updates, step.state or [None] * len(updates), strict=True):
                total = total + _size(update, weights)
        return step.once(total)


def _size(update: Adapted | Changed, weights: Tensor | None) -> Tensor:
    """Compute the squared length () of one update, or half its square weighted by Fisher information."""
    from staytrue.modeling.architecture import Adapted

    if not isinstance(update, Adapted):
        return changed_norm(update.weight, update.before, weights) / (1 if weights is None else 2)
    a, b = update.a.float(), update.b.float()
    return update.scale**2 * (squared_norm(a, b) if weights is None else weighted_norm(a, b, weights) / 2)


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """Compute ||B A||_F^2 = sum((B^T B) * (A A^T)) for A (r, in), B (out, r), without forming B A (out, in)."""
    return ((b.T @ b) * (a @ a.T)).sum()


def weighted_norm(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Compute sum(weights * (B A)^2) for weights (out, in); the backward pass forms B A again, not to keep it."""
    from torch.utils.checkpoint import checkpoint

    def norm(a: Tensor, b: Tensor) -> Tensor:
        return (weights * (b @ a).square()).sum()

    result: Tensor = checkpoint(norm, a, b, use_reentrant=False)
    return result


def changed_norm(weight: Tensor, before: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute sum(weights * (W - W0)^2); the backward pass computes the difference again, not to keep it."""
    from torch.utils.checkpoint import checkpoint

    def norm(weight: Tensor) -> Tensor:
        square = (weight.float() - before.float()).square()
        return (square if weights is None else weights * square).sum()

    result: Tensor = checkpoint(norm, weight, use_reentrant=False)
    return result


def fisher(parts: ModelParts, rows: list[Encoded], progress: Progress | None = None) -> list[Tensor]:
    """Sum (d log p(answer) / dW)^2 of each adapted matrix, or trained weight, over rows, per answer token; float32."""
    import torch

    from staytrue.modeling.fused_loss import nll

    trained = [weight for weight in parts.causal.parameters() if weight.requires_grad]
    weights = [matrix.weight for matrix in parts.adapted()] if parts.has_adapter else trained
    trained_before = [weight.requires_grad for weight in weights]
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    tokens, training = 0, parts.model.training
    parts.model.eval()
    if progress is not None:
        progress.begin(len(rows), "row of l2init's fisher")
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad(), parts.untrained():
            for number, row in enumerate(rows, start=1):
                ids = torch.tensor(row.input_ids, device=weights[0].device)
                following = torch.tensor(row.labels[1:], device=ids.device)
                answer = following != -100
                states = parts.backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
                loss = nll(states[answer], following[answer], parts.head).sum()
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                    total += gradient.float().square()
                tokens += int(answer.sum())
                if progress is not None:
                    progress.step(number, {})
    finally:
        for weight, trained_too in zip(weights, trained_before, strict=True):
            weight.requires_grad_(trained_too)
        parts.model.train(training)
    return [total / tokens for total in sums]
