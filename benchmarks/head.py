"""The head alone, forward and backward to the hidden states: one pass against trl's two kernels."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.shapes import SHAPES, Shape
from benchmarks.sidebyside import measure, ratio
from staytrue.modeling.fused_loss import token_losses
from staytrue.modeling.lm_head import Head

_TRLS_TILE = 32768  # words, as its trainers call it
_WEIGHT = 0.1
COMPARED = [  # variant, against what, the ratio of their multiplications
    ("trl_pair", "one_pass", 16 / 8), ("one_pass", "likelihood", 8 / 4),
    ("bare", "one_pass", 1),
]  # fmt: skip


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    measured = measure(passes(shape, "cpu", torch.float32), rounds)
    for name, value in measured.items():
        print(f"{shape_name} {name:12s} {value['seconds'] * 1e3:9.1f} ms  peak +{value['peak_mb']:7.1f} MB")
    return {
        f"head/{shape_name}/{name}:{against}": ratio(measured, name, against, round(limit, 3))
        for name, against, limit in COMPARED
    }


def passes(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """Each way to have a likelihood and a divergence of a batch's scored positions, and their gradient."""
    torch.manual_seed(0)
    positions = int(shape.rows * shape.tokens * shape.scored)
    kind = {"device": device, "dtype": dtype}
    head = Head(torch.randn(shape.vocabulary, shape.hidden, **kind) / shape.hidden**0.5)
    policy = torch.randn(positions, shape.hidden, **kind).requires_grad_()
    reference = policy.detach() + 0.1 * torch.randn_like(policy)
    said = torch.randint(shape.vocabulary, (positions,), device=device)

    def backward(log_probs, divergence=None):
        loss = -log_probs.mean()
        (loss if divergence is None else loss + _WEIGHT * divergence.mean()).backward()
        policy.grad = None

    def one_pass():
        result = token_losses(policy, said, head, reference=reference)
        backward(result.log_probs, result.divergence)

    def bare():
        result = token_losses(policy, said, head, reference=reference, metrics=False)
        backward(result.log_probs, result.divergence)

    def likelihood():
        backward(token_losses(policy, said, head).log_probs)

    def trl_pair():
        weight, outputs = head.weight, ("log_probs", "entropy", "is_top1")
        log_probs, *_ = ChunkedLogProbFunction.apply(policy, weight, None, said, 1.0, _TRLS_TILE, None, 1.0, outputs)
        divergence, _ = ChunkedDivergenceFunction.apply(policy, weight, None, reference, weight, None, 1.0)
        backward(log_probs, divergence)

    ways = (one_pass, bare, likelihood, trl_pair)
    return {way.__name__: way for way in ways} | _ligers(policy, reference, said, head)


def _ligers(policy: Tensor, reference: Tensor, said: Tensor, head: Head) -> dict[str, Callable[[], None]]:
    """Liger's two kernels, where they are installed and there is a GPU for them."""
    if policy.device.type != "cuda" or find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    likelihood, divergence = LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearJSD(jsd_beta=1.0)

    def liger_pair():
        loss = likelihood(head.weight, policy, said)
        (loss + _WEIGHT * divergence(policy, head.weight, reference, head.weight, None)).backward()
        policy.grad = None

    return {"liger_pair": liger_pair}
