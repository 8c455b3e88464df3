"""The head alone, forward and backward to the hidden states: one pass against trl's two kernels."""

import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from benchmarks.shapes import SHAPES
from benchmarks.sidebyside import measure, ratio
from holdfast.heads import Head
from holdfast.reading import Habit, read

_TRLS_TILE = 32768  # words, as its trainers call it
_WEIGHT = 0.1


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    torch.manual_seed(0)
    positions = int(shape.rows * shape.tokens * shape.scored)
    head = Head(torch.randn(shape.vocabulary, shape.hidden) / shape.hidden**0.5)
    policy = torch.randn(positions, shape.hidden, requires_grad=True)
    reference = policy.detach() + 0.1 * torch.randn(positions, shape.hidden)
    said, habit = torch.randint(shape.vocabulary, (positions,)), Habit()

    def backward(log_probs, divergence=None):
        loss = -log_probs.mean()
        (loss if divergence is None else loss + _WEIGHT * divergence.mean()).backward()
        policy.grad = None

    def one_pass():
        found = read(policy, said, head, reference=reference, habit=habit)
        backward(found.log_probs, found.divergence)

    def apart():
        found = read(policy, said, head, reference=reference)
        backward(found.log_probs, found.divergence)

    def likelihood():
        backward(read(policy, said, head).log_probs)

    def trl_pair():
        weight, outputs = head.weight, ("log_probs", "entropy", "is_top1")
        log_probs, *_ = ChunkedLogProbFunction.apply(policy, weight, None, said, 1.0, _TRLS_TILE, None, 1.0, outputs)
        divergence, _ = ChunkedDivergenceFunction.apply(policy, weight, None, reference, weight, None, 1.0)
        backward(log_probs, divergence)

    measured = measure({f.__name__: f for f in (one_pass, apart, likelihood, trl_pair)}, rounds)
    for name, value in measured.items():
        print(f"{shape_name} {name:12s} {value['seconds'] * 1e3:9.1f} ms  peak +{value['peak_mb']:7.1f} MB")
    pairs = [("trl_pair", "one_pass", 16 / 6), ("apart", "one_pass", 8 / 6), ("one_pass", "likelihood", 6 / 4)]
    return {
        f"head/{shape_name}/{name}:{against}": ratio(measured, name, against, round(limit, 3))
        for name, against, limit in pairs
    }
