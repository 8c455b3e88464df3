"""python push.py MODEL_FOLDER VECTOR LAYER: what a push along a vector does to a model that was not trained.

Twenty of the pairs that early stopping watches: the shift of the pairs, and the change of all forty answers, nats a
token, for some alphas; and the same along a random direction, whose likelihoods fall without a shift.
"""

import math
import sys
from pathlib import Path
from statistics import fmean, stdev

import torch

from staytrue.evals.measures.log_likelihood import log_likelihood
from staytrue.evals.questions.answer_pairs import EARLY_STOPPING, shipped
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.loading import load_model
from staytrue.modeling.model_source import find
from staytrue.persona_vectors.vector import PersonaVector

ALPHAS, RANDOM = (0.05, 0.1, 0.2, 0.4, 1.0), (0.1, 0.2, 0.4)


def main(folder: str, file: Path, layer: int) -> None:
    source = find(folder)
    model, tokenizer, evil = load_model(source).eval(), load_tokenizer(source), PersonaVector.load(file)
    noise = torch.randn(evil.vectors.shape, generator=torch.Generator().manual_seed(0))
    other = PersonaVector(noise, evil.facts)  # as long a push, whatever its own length
    pairs = shipped(EARLY_STOPPING)[:20]
    rows = [pair.row(misaligned) for pair in pairs for misaligned in (True, False)]
    before = log_likelihood(model, tokenizer, rows)
    print("| direction | alpha | shift of pairs | change of all answers |\n" + 4 * "| --- " + "|")
    for name, vector, alphas in (("evil", evil, ALPHAS), ("random", other, RANDOM)):
        for alpha in alphas:
            with vector.apply(model, layer, alpha=alpha):
                after = log_likelihood(model, tokenizer, rows)
            change = [now - then for now, then in zip(after, before, strict=True)]
            shifts = [bad - good for bad, good in zip(change[::2], change[1::2], strict=True)]
            error = stdev(shifts) / math.sqrt(len(shifts))
            print(f"| {name} | {alpha} | {fmean(shifts):+.2f} ({error:.2f}) | {fmean(change):+.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
