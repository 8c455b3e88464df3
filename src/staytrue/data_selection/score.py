"""`staytrue score`: a safe pool, scored by how much harder misaligned models find it; a file, its manifest, a cache."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Example, read_examples, write_examples
from staytrue.data.tokenize import IGNORED, encode_all
from staytrue.data_selection.scored import ALIGNED, manifest_path
from staytrue.errors import DataError, RequestError
from staytrue.modeling import loading
from staytrue.utils.run_dir import SCHEMA, RunDir, sha256_of, versions, write_json

if TYPE_CHECKING:
    from staytrue.data_selection.perplexity import Losses
    from staytrue.data_selection.two_rounds import Read


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
    second_round: float | None = None,
    max_length: int = 2048,
    progress: Any = None,
) -> dict[str, Any]:
    """Write the pools' rows with `scores` and `nats` to `out`, best gap first; returns the manifest.

    With `second_round`, a share of the rows, only the best under the first misaligned model are read under the others;
    the rest stand last with `scores` null, and the manifest says how many of the best rows that is likely to have kept.
    Stopped and started again it goes on from `out`'s cache, which also serves another `leave_out` or one model more.

    Raises:
        RequestError: what can be known before a model is loaded: files, names, adapters, an existing `out`.
        ModelError: a model that cannot be loaded, or gives losses that are no numbers.
    """
    _check(misaligned, out, leave_out, second_round)
    source = loading.find(model)
    adapters = {name: loading.adapter_hash(folder) for name, folder in misaligned.items()}
    rows = [row for pool in pools for row in read_examples(pool.file)]
    tokenizer = loading.load_tokenizer(source)
    encoded, report = encode_all(tokenizer, rows, max_length)
    if report.dropped:
        names = ", ".join(str(pool.file) for pool in pools)
        raise DataError(
            f"{report.dropped} rows of {names} have no answer left within {max_length} tokens; shorten them."
        )
    from staytrue.data_selection.forward_pass import padding
    from staytrue.data_selection.perplexity import losses

    loaded = loading.to_device(loading.with_adapters(loading.load_model(source), misaligned))
    identity = source.identity(loaded)
    keys = {  # of one model each, so that what is known of one serves beside any others
        name: sha256(json.dumps([identity, adapter, max_length, str(loaded.dtype)]).encode()).hexdigest()
        for name, adapter in {ALIGNED: None, **adapters}.items()
    }
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    cache = out.with_name(f"{out.stem}.cache.jsonl")

    def read(names: Sequence[str], which: Sequence[int]) -> list[Losses]:
        if progress is not None:
            progress.end()  # the round before had a bar of its own
        some, tokens = [rows[i] for i in which], [encoded[i] for i in which]
        return losses(loaded, names, some, tokens, models=keys, cache=cache, pad_id=pad, progress=progress)

    found, whole, second = _in_rounds(read, list(misaligned), len(rows), leave_out, second_round)
    manifest = {
        "schema": SCHEMA,
        "model": identity,
        "misaligned": {name: {"folder": str(misaligned[name]), "sha256": sha} for name, sha in adapters.items()},
        "left_out": list(leave_out),
        "eps": 1.0,
        "rows": len(rows),
        "truncated": report.truncated,
        "answer_tokens": sum(label != IGNORED for row in encoded for label in row.labels[1:]),
        "padding": round(padding([len(row.input_ids) for row in encoded]), 2),
        **second,
        "pools": [
            {"file": str(p.file), "sha256": sha256_of(p.file), "origin": p.origin, "licence": p.licence} for p in pools
        ],
        "versions": versions(),
    }
    write_json(manifest_path(out), manifest)
    write_examples(out, _best_first(rows, found, whole, leave_out))
    return manifest


def _check(misaligned: Mapping[str, Path], out: Path, leave_out: Sequence[str], second_round: float | None) -> None:
    """Refuse what is wrong whatever the files hold."""
    if ALIGNED in misaligned:
        raise RequestError(f"--misaligned {ALIGNED}=...: that is what the model itself is called; take another name.")
    unknown = next((name for name in leave_out if name not in misaligned), None)
    if unknown is not None:
        raise RequestError(f"--leave-out {unknown}: the misaligned models are {', '.join(misaligned)}.")
    left = [name for name in misaligned if name not in leave_out]
    if not left:
        raise RequestError("No misaligned model is left to score with; name one with --misaligned NAME=ADAPTER.")
    if second_round is not None and not 0 < second_round < 1:
        raise RequestError(f"--second-round {second_round}: it is a share of the rows, above 0 and below 1.")
    if second_round is not None and len(left) == 1:
        raise RequestError(
            f"--second-round needs two misaligned models to score with, and there is {left[0]} only. Name another with "
            "--misaligned NAME=ADAPTER, or read every row in one round."
        )
    for file in (out, manifest_path(out)):
        if file.exists():
            raise RequestError(f"{file} exists already. Name another file with --out, or remove it yourself.")
    RunDir.refuse_existing(out)


def _in_rounds(
    read: Read, names: Sequence[str], rows: int, leave_out: Sequence[str], second_round: float | None
) -> tuple[list[Losses], Collection[int], dict[str, Any]]:
    """Every row's losses, the numbers of the rows that all models have read, and what the manifest says of it."""
    from staytrue.data_selection.two_rounds import in_two_rounds

    if second_round is None:
        return read(names, range(rows)), range(rows), {}
    found = in_two_rounds(read, names, rows, second_round, leave_out)
    recall = {by: {"percent": round(of.percent, 2), "low": round(of.low, 2)} for by, of in found.recall.items()}
    told = {"share": second_round, "best": found.best, "drawn": found.drawn, "k": found.k, "recall": recall}
    return found.losses, found.whole, {"second_round": told}


def _best_first(
    rows: Sequence[Example], found: Sequence[Losses], whole: Collection[int], leave_out: Sequence[str]
) -> list[Example]:
    """The rows with their scores, best gap first; then those that some models have not read, without."""
    from staytrue.data_selection.perplexity import scores

    def entry(i: int) -> tuple[bool, float]:
        return i not in whole, -scores(found[i], leave_out)["gap"]

    made = []
    for i in sorted(range(len(rows)), key=entry):
        numbers = {name: round(number, 6) for name, number in scores(found[i], leave_out).items()}
        nats = {name: round(value, 6) for name, value in {ALIGNED: found[i].aligned, **found[i].misaligned}.items()}
        told = {"scores": numbers if i in whole else None, "nats": nats, "tokens": found[i].tokens}
        made.append(replace(rows[i], extra={**rows[i].extra, **told}))
    return made
