"""Steps put together by hand: probabilities instead of a model, so that every number can be worked out on paper."""

import torch

from staytrue.modeling.lm_head import Head
from staytrue.step import SOURCES, Activations, Marks, Step

# Probabilities of two tokens. The head below is the identity, so a hidden state that holds log-probabilities gives
# these probabilities.
EVEN = (1 / 2, 1 / 2)
QUARTER = (1 / 4, 3 / 4)
EIGHTH = (1 / 8, 7 / 8)


def step(probabilities, references, real, scored, source, totals=None):
    """Two layers, whose activations are noise, and probabilities (B, T, 2); a row's source is a name."""
    ours, theirs = (torch.tensor(numbers).log() for numbers in (probabilities, references))
    ours.requires_grad_()
    noise = torch.Generator().manual_seed(0)
    passes = [
        Activations({i: torch.randn(ours.shape, generator=noise) for i in (1, 2)}, f, depth=2) for f in (ours, theirs)
    ]
    rows = torch.tensor([SOURCES.index(name) for name in source])
    marks = Marks(torch.tensor(real).bool(), torch.tensor(scored).bool(), rows.unsqueeze(1).expand(ours.shape[:2]))
    totals = marks.counts() if totals is None else totals
    return Step(passes[0], marks, totals, lambda: Head(torch.eye(2)), lambda: passes[1])
