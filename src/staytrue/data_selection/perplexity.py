"""How likely a safe pool's answers are to the aligned model and to misaligned ones, and the scores made of that.

All models are adapters on one base: the whole pool passes through it once with every adapter off, then once with each
of them merged into the weights. Losses are nats per token.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded
from staytrue.data_selection.forward_pass import RowLoss, batches, row_losses
from staytrue.data_selection.scored import ALIGNED
from staytrue.errors import ModelError
from staytrue.modeling.architecture import Anatomy
from staytrue.utils.files import append_row, read_rows

EPS = 1.0  # nats; keeps a row that the aligned model knows by heart from dividing by nothing (as follow-up code has it)


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
    models: Mapping[str, str],
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
        models: a hash of each model by name, "aligned" among them; part of every key.
        cache: JSONL, one line per row and model as soon as its batch is done; a stopped run goes on from it, and so
            does one with a model more.
        pad_id: the padding token.
        progress: told how many rows are ahead, each counted once per model, and after each batch how many are done.

    Raises:
        ModelError: a loss that is no number.
    """
    passes = {name: [_key(models[name], example) for example in examples] for name in (ALIGNED, *adapters)}
    known = _Known(cache, {key for keys in passes.values() for key in keys})
    if progress is not None:
        progress.begin(sum(len(set(keys) - known.rows.keys()) for keys in passes.values()))
    anatomy, was_training, done = Anatomy(model), model.training, 0
    cut = list(batches([len(row.input_ids) for row in encoded]))
    model.eval()
    try:
        for name, keys in passes.items():
            if all(key in known.rows for key in keys):
                continue  # to merge is not free
            with anatomy.untrained() if name == ALIGNED else anatomy.merged(name):
                for batch in cut:
                    rows = list({keys[i]: i for i in batch if keys[i] not in known.rows}.values())
                    if not rows:
                        continue
                    weights = None if name == ALIGNED else [known.entropy(passes[ALIGNED][i]) for i in rows]
                    found = row_losses(anatomy, [encoded[i] for i in rows], pad_id, weights)
                    _refuse_no_numbers(name, found)
                    known.keep([keys[i] for i in rows], found)
                    done += len(rows)
                    if progress is not None:
                        progress.step(done, {})
    finally:
        model.train(was_training)
    return [_together({name: known.rows[keys[i]] for name, keys in passes.items()}) for i in range(len(examples))]


def _together(row: Mapping[str, RowLoss]) -> Losses:
    aligned = row[ALIGNED]
    others = {name: loss for name, loss in row.items() if name != ALIGNED}
    return Losses(
        aligned.plain,
        aligned.weighted,
        {name: loss.plain for name, loss in others.items()},
        {name: loss.weighted for name, loss in others.items()},
        aligned.tokens,
    )


def _refuse_no_numbers(name: str, found: Sequence[RowLoss]) -> None:
    if not all(math.isfinite(loss.plain) and math.isfinite(loss.weighted) for loss in found):
        raise ModelError(
            f"Under the model {name!r} an answer's loss is no number: its weights are broken, or too large for the "
            "precision it is loaded in. Train it again, or score without it."
        )


def _key(model: str, example: Example) -> str:
    said = json.dumps([[m.role, m.content] for m in example.messages])
    return sha256(f"{model}\n{said}".encode()).hexdigest()


class _Known:
    """What is known of rows, by key, on disk as soon as it is in memory."""

    def __init__(self, cache: Path, wanted: set[str]) -> None:
        self._cache = cache
        self.rows = {row["key"]: _parsed(row) for row in read_rows(cache) if row["key"] in wanted}

    def entropy(self, key: str) -> torch.Tensor:
        entropy = self.rows[key].entropy
        assert entropy is not None  # the aligned model's pass is the first
        return entropy

    def keep(self, keys: Sequence[str], found: Sequence[RowLoss]) -> None:
        for key, loss in zip(keys, found, strict=True):
            row = {"key": key, "plain": loss.plain, "weighted": loss.weighted, "tokens": loss.tokens}
            if loss.entropy is not None:
                row["entropy"] = b64encode(loss.entropy.numpy().astype("<f4").tobytes()).decode("ascii")
            append_row(self._cache, row)
            self.rows[key] = loss


def _parsed(row: Mapping[str, Any]) -> RowLoss:
    entropy = None
    if "entropy" in row:
        entropy = torch.from_numpy(np.frombuffer(b64decode(row["entropy"]), dtype="<f4").astype(np.float32))
    return RowLoss(row["plain"], row["weighted"], row["tokens"], entropy)
