"""Losses of a safe pool's answers under the aligned model and misaligned ones, and the scores computed from them.

All models are adapters on one base. The pool passes through the base once without an adapter, then once with each
adapter merged into the weights. Losses are in nats per token.
"""

from __future__ import annotations

import math
import random
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded
from staytrue.data_selection.forward_pass import RowLoss, batches, row_losses
from staytrue.data_selection.ranking import ALIGNED
from staytrue.errors import ModelError, RequestError
from staytrue.modeling.architecture import ModelParts
from staytrue.utils.columns import COUNT, NUMBER, TEXT, refuse_wrong
from staytrue.utils.files import append_row, numbered_rows

_LOSSES = {"plain": NUMBER, "weighted": NUMBER, "tokens": COUNT}  # of a row of the cache
_ROUNDING = 1e-6  # nats; the same weights differ by less in batches of another shape, and trained ones by more
EPS = 1.0  # nats; bounds the gap of a row whose loss under the aligned model is near 0 (as in the follow-up's code)


@dataclass(frozen=True)
class Losses:
    """One row's losses under every model, in nats per token.

    Attributes:
        aligned: mean over answer tokens under the aligned model.
        weighted_aligned: the same mean weighted by the aligned model's entropy at each token, so that tokens which it
            is certain of hardly count.
        misaligned: means under the misaligned models, by name.
        weighted: their means with the same weights.
        tokens: number of answer tokens.
    """

    aligned: float
    weighted_aligned: float
    misaligned: Mapping[str, float]
    weighted: Mapping[str, float]
    tokens: int


def scores(row: Losses, leave_out: Sequence[str] = ()) -> dict[str, float]:
    """Score one row; higher means that the aligned model finds it easier than the misaligned ones do.

    gap: (mean L_mis - L_aligned) / (L_aligned + 1), equation 6 of arXiv 2508.06249.
    steady: the same with the smallest L_mis, so that every misaligned model must find the row harder.
    choice: mean L_mis - L_aligned, each weighted by the aligned model's entropy at each token.
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
    inside: Mapping[str, str] | None = None,
    progress: Any = None,
) -> list[Losses]:
    """Compute the losses of every row, in order; losses in the cache are not computed again.

    Args:
        model: a peft model with an adapter for each misaligned model.
        adapters: names of the misaligned models.
        examples: rows (N), for their content hashes.
        encoded: the same rows as tokens.
        models: a hash of each model by name, "aligned" among them; part of every key.
        cache: JSONL, one line per row and model, appended after each batch; a stopped call continues from it, and
            so does a call with one more model.
        pad_id: the padding token.
        inside: the name of each one's adapter in the model; None where it is its own.
        progress: notified of the rows ahead, each counted once per model, and after each batch of the rows done.

    Raises:
        ModelError: a loss is NaN or infinite, or a misaligned model's losses are all the aligned model's.
        RequestError: the cache is damaged, or another file.
    """
    passes = {name: [_key(models[name], example) for example in examples] for name in (ALIGNED, *adapters)}
    known = _Known(cache, {key for keys in passes.values() for key in keys}, set(passes[ALIGNED]))
    if progress is not None:
        progress.begin(sum(len(set(keys) - known.rows.keys()) for keys in passes.values()), "row")
    parts, was_training, done, inside = ModelParts(model), model.training, 0, inside or {}
    cut = list(batches([len(row.input_ids) for row in encoded]))
    random.Random(0).shuffle(cut)  # else the long rows come first, and `progress` promises too late an end
    model.eval()
    try:
        for name, keys in passes.items():
            missing = any(key not in known.rows for key in keys)  # else no pass: merging takes time
            with (
                (parts.untrained() if name == ALIGNED else parts.merged(inside.get(name, name)))
                if missing
                else nullcontext()
            ):
                for batch in cut:
                    rows = list({keys[i]: i for i in batch if keys[i] not in known.rows}.values())
                    if not rows:
                        continue
                    weights = None if name == ALIGNED else [known.entropy(passes[ALIGNED][i]) for i in rows]
                    computed = row_losses(parts, [encoded[i] for i in rows], pad_id, weights)
                    _refuse_non_finite(name, computed)
                    known.keep([keys[i] for i in rows], computed)
                    done += len(rows)
                    if progress is not None:
                        progress.step(done, {})
            if name != ALIGNED:
                _refuse_aligned(name, [known.rows[key] for key in passes[ALIGNED]], [known.rows[key] for key in keys])
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


def _refuse_non_finite(name: str, row_losses_: Sequence[RowLoss]) -> None:
    if not all(math.isfinite(loss.plain) and math.isfinite(loss.weighted) for loss in row_losses_):
        raise ModelError(
            f"Under the model {name!r} an answer's loss is not a number: its weights are broken, or too large for the "
            "precision it is loaded in. Train it again, or score without it."
        )


def _refuse_aligned(name: str, aligned: Sequence[RowLoss], misaligned: Sequence[RowLoss]) -> None:
    """Refuse a misaligned model whose losses are those of the aligned one but for rounding: every gap would be 0."""
    if all(abs(one.plain - other.plain) < _ROUNDING for one, other in zip(aligned, misaligned, strict=True)):
        raise ModelError(
            f"The model {name!r} gives every answer the likelihood that the aligned model gives: its adapter changes "
            "nothing. Is it untrained (lora_B all 0), or part of --model already? Name another adapter."
        )


def _key(model: str, example: Example) -> str:
    return sha256(f"{model}\n{example.identity}".encode()).hexdigest()


class _Known:
    """The losses computed so far, by key; every new one is appended to the cache file at once."""

    def __init__(self, cache: Path, keys: set[str], aligned: set[str]) -> None:
        """Read the losses of these keys.

        Args:
            cache: the file.
            keys: of the rows under every model.
            aligned: those under the aligned model, whose entropy is kept too.

        Raises:
            RequestError: the file is damaged, or another file.
        """
        self._cache = cache
        self.rows: dict[str, RowLoss] = {}
        try:
            for number, row in numbered_rows(cache):
                refuse_wrong(row, {"key": TEXT}, ["key"], f"line {number}")
                if (key := row["key"]) in keys:
                    self.rows[key] = _parsed(row, f"line {number}", with_entropy=key in aligned)
        except ValueError as error:
            raise RequestError(
                f"{cache} cannot be read ({error}). You may delete it: its losses are then computed again."
            ) from None

    def entropy(self, key: str) -> torch.Tensor:
        entropy = self.rows[key].entropy
        assert entropy is not None  # the aligned model's pass is the first
        return entropy

    def keep(self, keys: Sequence[str], computed: Sequence[RowLoss]) -> None:
        for key, loss in zip(keys, computed, strict=True):
            row = {"key": key, "plain": loss.plain, "weighted": loss.weighted, "tokens": loss.tokens}
            if loss.entropy is not None:
                row["entropy"] = b64encode(loss.entropy.numpy().astype("<f4").tobytes()).decode("ascii")
            append_row(self._cache, row)
            self.rows[key] = loss


def _parsed(row: Mapping[str, Any], what: str, *, with_entropy: bool) -> RowLoss:
    """The losses in a row of the cache.

    Raises:
        ValueError: it holds something else; `what` names the row.
    """
    refuse_wrong(row, _LOSSES, _LOSSES, what)
    entropy = None
    if with_entropy:
        refuse_wrong(row, {"entropy": TEXT}, ["entropy"], what)
        try:
            entropy = torch.from_numpy(np.frombuffer(b64decode(row["entropy"]), dtype="<f4").astype(np.float32))
        except ValueError as error:
            raise ValueError(f"{what} has no entropy that can be read: {error}") from None
        if len(entropy) != row["tokens"]:
            raise ValueError(f"{what} has the entropy of {len(entropy)} tokens, and {row['tokens']} as 'tokens'")
    return RowLoss(row["plain"], row["weighted"], row["tokens"], entropy)
