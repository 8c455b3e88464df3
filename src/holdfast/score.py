"""`holdfast score`: a safe pool, scored by how much harder misaligned models find it; a file, its manifest, a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from holdfast import models
from holdfast.encoding import IGNORED, encode_all
from holdfast.errors import DataError, RequestError
from holdfast.examples import Example, read_examples, write_examples
from holdfast.prepare.scored import manifest_path
from holdfast.rundir import SCHEMA, RunDir, sha256_of, versions, write_json


@dataclass(frozen=True)
class Pool:
    """One file of safe rows, and what is known of where it comes from."""

    file: Path
    origin: str = "not stated"
    licence: str = "not stated"


def score(
    model: str,
    misaligned: dict[str, Path],
    pools: Sequence[Pool],
    out: Path,
    *,
    leave_out: Sequence[str] = (),
    max_length: int = 2048,
    progress: Any = None,
) -> dict[str, Any]:
    """Write the pools' rows with `scores` and `nats` to `out`, best gap first; returns the manifest.

    Stopped and started again it goes on from `out`'s cache; the cache also serves another `leave_out`.

    Raises:
        RequestError: what can be known before a model is loaded: files, names, adapters, an existing `out`.
    """
    unknown = next((name for name in leave_out if name not in misaligned), None)
    if unknown is not None:
        raise RequestError(f"--leave-out {unknown}: the misaligned models are {', '.join(misaligned)}.")
    if not set(misaligned) - set(leave_out):
        raise RequestError("No misaligned model is left to score with; name one with --misaligned NAME=ADAPTER.")
    for file in (out, manifest_path(out)):
        if file.exists():
            raise RequestError(f"{file} exists already. Name another file with --out, or remove it yourself.")
    RunDir.refuse_existing(out)
    source = models.find(model)
    adapters = {name: models.adapter_hash(folder) for name, folder in misaligned.items()}
    rows = [row for pool in pools for row in _read(pool)]
    tokenizer = models.load_tokenizer(source)
    encoded, report = encode_all(tokenizer, rows, max_length)
    if report.dropped:
        names = ", ".join(str(pool.file) for pool in pools)
        raise DataError(
            f"{report.dropped} rows of {names} have no answer left within {max_length} tokens; shorten them."
        )
    from holdfast.prepare.perplexity import losses, scores

    loaded = models.to_device(models.with_adapters(models.load_model(source), misaligned))
    identity = source.identity(loaded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    key = sha256(json.dumps([identity, adapters, max_length]).encode()).hexdigest()
    cache = out.with_name(f"{out.stem}.cache.jsonl")
    found = losses(loaded, list(misaligned), rows, encoded, models=key, cache=cache, pad_id=pad, progress=progress)
    scored = [(scores(loss, leave_out), loss, row) for loss, row in zip(found, rows, strict=True)]
    scored.sort(key=lambda entry: -entry[0]["gap"])
    manifest = {
        "schema": SCHEMA,
        "model": identity,
        "misaligned": {name: {"folder": str(misaligned[name]), "sha256": sha} for name, sha in adapters.items()},
        "left_out": list(leave_out),
        "eps": 1.0,
        "rows": len(rows),
        "truncated": report.truncated,
        "answer_tokens": sum(label != IGNORED for row in encoded for label in row.labels[1:]),
        "pools": [
            {"file": str(p.file), "sha256": sha256_of(p.file), "origin": p.origin, "licence": p.licence} for p in pools
        ],
        "versions": versions(),
    }
    write_json(manifest_path(out), manifest)
    write_examples(out, [_with_scores(row, numbers, loss) for numbers, loss, row in scored])
    return manifest


def _read(pool: Pool) -> list[Example]:
    return read_examples(pool.file)


def _with_scores(row: Example, numbers: dict[str, float], loss: Any) -> Example:
    rounded = {name: round(number, 6) for name, number in numbers.items()}
    nats = {"aligned": round(loss.aligned, 6)} | {k: round(v, 6) for k, v in loss.misaligned.items()}
    return Example(row.messages, row.source, {**row.extra, "scores": rounded, "nats": nats, "tokens": loss.tokens})
