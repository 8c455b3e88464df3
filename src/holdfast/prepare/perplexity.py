"""How likely a safe pool's answers are to the aligned model and to misaligned ones, and the scores made of that.

All models are adapters on one base: each batch passes through the base once with every adapter off and once with each
of them, and the head sees answer tokens only. Losses are nats per token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.anatomy import Anatomy
from holdfast.encoding import IGNORED, Encoded
from holdfast.examples import Example
from holdfast.heads import Head
from holdfast.rundir import append_row, read_rows

EPS = 1.0  # nats; keeps a row that the aligned model knows by heart from dividing by nothing (as follow-up code has it)
_TOKENS_PER_BATCH = 4096  # padded
_MOST_WASTE = 0.03  # of a batch may be padding, beyond its first row


@dataclass(frozen=True)
class Losses:
    """One row's losses under every model.

    `plain` is the mean over answer tokens. `weighted` is the same mean weighted by the aligned model's entropy at each
    token: tokens at which it had a choice count, tokens it recites do not.
    """

    aligned: float
    weighted_aligned: float
    misaligned: Mapping[str, float]
    weighted: Mapping[str, float]
    tokens: int


def scores(row: Losses, leave_out: Sequence[str] = ()) -> dict[str, float]:
    """The scores of one row; higher means the aligned model finds it easier than the misaligned ones.

    gap: (mean L_mis - L_aligned) / (L_aligned + 1), equation 6 of arXiv 2508.06249.
    steady: the same with the smallest L_mis: what every misaligned model has lost, not what one has forgotten.
    choice: mean L_mis - L_aligned, each weighted by the aligned model's entropy: what changed where it had a choice.
    """
    names = [name for name in row.misaligned if name not in leave_out]
    mean = sum(row.misaligned[name] for name in names) / len(names)
    least = min(row.misaligned[name] for name in names)
    weighted = sum(row.weighted[name] for name in names) / len(names)
    return {
        "gap": (mean - row.aligned) / (row.aligned + EPS),
        "steady": (least - row.aligned) / (row.aligned + EPS),
        "choice": weighted - row.weighted_aligned,
    }


def losses(
    model: Any,
    adapters: Sequence[str],
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    models: str,
    cache: Path,
    pad_id: int,
    progress: Any = None,
) -> list[Losses]:
    """The losses of every row, in order; what the cache holds is not computed again.

    Args:
        model: a peft model whose adapters have these names.
        adapters: the misaligned ones.
        examples: rows (N), for their content hashes.
        encoded: the same rows as tokens.
        models: a hash of the model and its adapters; part of every key.
        cache: JSONL, one line per row as soon as its batch is done; a stopped run goes on from it.
        pad_id: the padding token.
        progress: told how many rows are ahead, and after each batch how many are done.
    """
    keys = [_key(models, example) for example in examples]
    known = {row["key"]: _read(row) for row in read_rows(cache)}
    missing = [i for i, key in enumerate(keys) if key not in known]
    anatomy, was_training, done = Anatomy(model), model.training, 0
    if progress is not None:
        progress.begin(len(missing))
    model.eval()
    try:
        for batch in batches([len(encoded[i].input_ids) for i in missing]):
            rows = [missing[i] for i in batch]
            for i, found in zip(rows, _batch(anatomy, adapters, [encoded[i] for i in rows], pad_id), strict=True):
                known[keys[i]] = found
                append_row(cache, {"key": keys[i], **vars(found)})
            done += len(rows)
            if progress is not None:
                progress.step(done, {})
    finally:
        model.train(was_training)
    return [known[key] for key in keys]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers, longest first, cut where a token budget is full or padding would pass a few percent."""
    batch: list[int] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = lengths[batch[0]] if batch else lengths[i]
        padded = width * (len(batch) + 1)
        if batch and (padded > _TOKENS_PER_BATCH or padded - real - lengths[i] > _MOST_WASTE * padded):
            yield batch
            batch, real = [], 0
        batch.append(i)
        real += lengths[i]
    if batch:
        yield batch


@torch.no_grad()
def _batch(anatomy: Anatomy, adapters: Sequence[str], rows: Sequence[Encoded], pad_id: int) -> list[Losses]:
    device = next(anatomy.backbone.parameters()).device
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad_id] * (width - len(row.input_ids)) for row in rows], device=device)
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(r.input_ids) + [0] * (width - len(r.input_ids)) for r in rows], device=device)
    scored = labels[:, 1:] != IGNORED
    owner = torch.arange(len(rows), device=device).unsqueeze(1).expand_as(scored)[scored]
    wanted = labels[:, 1:][scored]

    def hidden() -> Tensor:
        out = anatomy.backbone(input_ids=ids, attention_mask=mask, use_cache=False)
        final: Tensor = out.last_hidden_state[:, :-1][scored]
        return final

    def means(per_token: Tensor, weight: Tensor) -> list[float]:
        weight, per_token = weight.cpu().double(), per_token.cpu().double()
        whole = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner.cpu(), weight)
        total = torch.zeros_like(whole).index_add_(0, owner.cpu(), per_token * weight)
        return list((total / whole.clamp(min=1e-12)).tolist())

    with anatomy.untrained():
        plain, entropy = _nll_and_entropy(hidden(), wanted, anatomy.head)
    one = torch.ones_like(plain)
    aligned, weighted_aligned = means(plain, one), means(plain, entropy)
    mis, weighted = {}, {}
    for name in adapters:
        anatomy.model.set_adapter(name)
        loss, _ = _nll_and_entropy(hidden(), wanted, anatomy.head)
        mis[name], weighted[name] = means(loss, one), means(loss, entropy)
    tokens = scored.sum(1).tolist()
    return [
        Losses(
            aligned[i],
            weighted_aligned[i],
            {name: mis[name][i] for name in adapters},
            {name: weighted[name][i] for name in adapters},
            tokens[i],
        )
        for i in range(len(rows))
    ]


def _nll_and_entropy(hidden: Tensor, wanted: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """(N,) negative log-likelihood of the wanted tokens and entropy of the law, in nats, head in tiles."""
    nll, entropy = torch.empty(len(wanted), device=hidden.device), torch.empty(len(wanted), device=hidden.device)
    for tile in head.tiles(hidden):
        law = torch.log_softmax(head.logits(hidden[tile]), -1)
        nll[tile] = -law.gather(1, wanted[tile].unsqueeze(1)).squeeze(1)
        entropy[tile] = -(law.exp() * law).sum(-1)
    return nll, entropy


def _key(models: str, example: Example) -> str:
    said = json.dumps([[m.role, m.content] for m in example.messages])
    return sha256(f"{models}\n{said}".encode()).hexdigest()


def _read(row: Mapping[str, Any]) -> Losses:
    return Losses(**{name: row[name] for name in Losses.__dataclass_fields__})
