"""`staytrue score`: writes a scored pool of safe rows, its manifest, and a cache of losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Example, hash_of_rows, read_examples, write_examples
from staytrue.data.position_table import refuse_longer, table_length
from staytrue.data.tokenize import IGNORED, Encoded, encode, encode_all, padding_id
from staytrue.data_selection.ranking import ALIGNED, manifest_path
from staytrue.errors import DataError, RequestError
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.trained_on import refuse_other_model
from staytrue.utils.console import tell
from staytrue.utils.files import refuse_existing, sha256_of, write_json
from staytrue.utils.run_dir import SCHEMA, versions

if TYPE_CHECKING:
    from staytrue.data_selection.perplexity import Losses

_NAMED = 3  # rows in a message


@dataclass(frozen=True)
class Pool:
    """One file of safe rows, with the origin and licence that its user stated."""

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
    """Write the pools' distinct rows with `scores` and `nats` to `out`, largest gap first.

    A stopped call continues from the cache beside `out`. The same cache serves another `leave_out`, and a call with
    one more model.

    Args:
        model: the aligned model: a folder, a hub name or `organism`.
        misaligned: folders of the misaligned adapters, by name.
        pools: the files of safe rows.
        out: the scored pool to write; the manifest and the cache stand beside it.
        leave_out: names of misaligned models that count in no score.
        max_length: tokens after which a row is cut.
        progress: notified of rows ahead and rows done, each row counted once per model.

    Returns:
        The manifest.

    Raises:
        RequestError: a wrong file, name or adapter, or an existing `out`; found before a model is loaded.
        ModelError: a model cannot be loaded, or its losses are not finite, or those of the aligned model.
    """
    _check(misaligned, out, leave_out)
    _refuse_manifest_of_another(out, [pool.file for pool in pools])
    source = model_source.find(model)
    adapters = {name: loading.adapter_hash(folder) for name, folder in misaligned.items()}
    _refuse_same(adapters)
    for folder in misaligned.values():
        refuse_other_model(folder, source)
    tokenizer = load_tokenizer(source)
    read = [read_examples(pool.file) for pool in pools]
    origins = [_origin(pool, rows) for pool, rows in zip(pools, read, strict=True)]  # a file may be edited later
    rows, encoded, truncated = _encoded(tokenizer, [row for rows in read for row in rows], max_length)
    if truncated:
        are = "is" if truncated == 1 else "are"
        tell(f"{truncated} of {len(rows)} rows {are} longer than {max_length:,} tokens; only the part kept is scored.")
    from staytrue.data_selection.perplexity import losses

    tell(f"score: loading {source.name} and {len(misaligned)} adapter{'s' if len(misaligned) > 1 else ''}")
    inside = {name: f"m{i}" for i, name in enumerate(misaligned)}  # peft refuses names such as `a.b` and `keys`
    folders = {inside[name]: folder for name, folder in misaligned.items()}
    loaded = loading.to_device(loading.with_adapters(loading.load_model(source), folders))
    longest = max(len(row.input_ids) for row in encoded)
    refuse_longer(longest, table_length(loaded), "The longest row", "Lower --max-length to that number.")
    identity = source.identity(loaded)
    row_losses = losses(
        loaded,
        list(misaligned),
        rows,
        encoded,
        models=_cache_keys(adapters, identity, max_length, str(loaded.dtype)),
        cache=out.with_name(f"{out.stem}.cache.jsonl"),
        pad_id=padding_id(tokenizer),
        inside=inside,
        progress=progress,
    )
    best_first = _best_first(rows, row_losses, leave_out)
    if best_first[0].extra["scores"]["gap"] <= 0:
        tell(
            "No row has a gap above 0: none is likelier under the aligned model, so the gap is no ground to choose by. "
            "Are --model and --misaligned the right way round?"
        )
    manifest = {
        "schema": SCHEMA,
        "model": identity,
        "misaligned": {name: {"folder": str(misaligned[name]), "sha256": sha} for name, sha in adapters.items()},
        "left_out": list(leave_out),
        "eps": 1.0,
        **_counts(encoded),
        "truncated": truncated,
        "pools": origins,
        "versions": versions(),
    }
    write_json(manifest_path(out), manifest)
    write_examples(out, best_first)
    return manifest


def _encoded(tokenizer: Any, read: Sequence[Example], max_length: int) -> tuple[list[Example], list[Encoded], int]:
    """Return the distinct rows, their tokens, and how many were cut; a row that loses its answer is refused."""
    rows = list({row.identity: row for row in reversed(read)}.values())[::-1]  # the first of equal rows
    if len(rows) < len(read):
        tell(f"{len(read) - len(rows)} of {len(read)} rows repeat another row of the pools; each is scored once.")
    encoded, report = encode_all(tokenizer, rows, max_length)
    if report.dropped:
        raise DataError(_without_answer(tokenizer, rows, max_length, report.dropped))
    return rows, encoded, report.truncated


def _without_answer(tokenizer: Any, rows: Sequence[Example], max_length: int, count: int) -> str:
    """A sentence on rows whose answers begin after the last token that is kept; the first few are named."""
    lost = (row.place for row in rows if not _has_answer(encode(tokenizer, row, max_length)))
    first = list(islice(lost, _NAMED))
    more = f" and {count - len(first)} more" if count > len(first) else ""
    have, them = ("row has", "it") if count == 1 else ("rows have", "them")
    return (
        f"{count} {have} no answer left within {max_length} tokens ({', '.join(first)}{more}); shorten {them} or raise "
        "--max-length."
    )


def _has_answer(row: Encoded) -> bool:
    return any(label != IGNORED for label in row.labels[1:])


def _counts(encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Return how many rows were scored, the tokens of their answers, and the padding in percent."""
    from staytrue.data_selection.forward_pass import padding

    return {
        "rows": len(encoded),
        "answer_tokens": sum(label != IGNORED for row in encoded for label in row.labels[1:]),
        "padding": round(padding([len(row.input_ids) for row in encoded]), 2),
    }


def _origin(pool: Pool, rows: Sequence[Example]) -> dict[str, Any]:
    """Return what the manifest says of one pool; of a folder or a hub name the hash is that of the rows."""
    sha = sha256_of(pool.file) if pool.file.is_file() else hash_of_rows(rows)
    return {"file": str(pool.file), "sha256": sha, "origin": pool.origin, "licence": pool.licence}


def _cache_keys(
    adapters: Mapping[str, str], identity: Mapping[str, Any], max_length: int, dtype: str
) -> dict[str, str]:
    """Return a key for each model, which does not depend on the other models, so that their losses can be reused."""
    return {
        name: sha256(json.dumps([identity, adapter, max_length, dtype]).encode()).hexdigest()
        for name, adapter in {ALIGNED: None, **adapters}.items()
    }


def _check(misaligned: Mapping[str, Path], out: Path, leave_out: Sequence[str]) -> None:
    """Refuse wrong names and an existing `out` before any file is read."""
    if ALIGNED in misaligned:
        raise RequestError(f"--misaligned {ALIGNED}=...: that is what the model itself is called; take another name.")
    unknown = next((name for name in leave_out if name not in misaligned), None)
    if unknown is not None:
        raise RequestError(f"--leave-out {unknown}: the misaligned models are {', '.join(misaligned)}.")
    if len(set(leave_out)) == len(misaligned):
        raise RequestError("No misaligned model is left to score with; name one with --misaligned NAME=ADAPTER.")
    refuse_existing(out)  # a manifest alone is that of a call which was stopped before it wrote the pool


def _refuse_manifest_of_another(out: Path, read: Sequence[Path]) -> None:
    """Refuse a pool whose manifest is that of a scored pool beside it, with another suffix and none of those read."""
    manifest = manifest_path(out)
    beside = (out.with_suffix(suffix) for suffix in (".jsonl", ".json") if suffix != out.suffix)
    other = next((file for file in beside if file.is_file() and file not in read), None)
    if manifest.exists() and other is not None:
        raise RequestError(
            f"{manifest} exists already, and {other} may be the pool that it is of. Choose another path with --out, or "
            "remove the manifest yourself."
        )


def _refuse_same(adapters: Mapping[str, str]) -> None:
    """Refuse one adapter under two names, which would count twice."""
    first: dict[str, str] = {}
    for name, sha in adapters.items():
        if (other := first.setdefault(sha, name)) != name:
            raise RequestError(
                f"--misaligned: {other} and {name} are the same adapter, which would count twice. Take one out."
            )


def _best_first(rows: Sequence[Example], row_losses: Sequence[Losses], leave_out: Sequence[str]) -> list[Example]:
    """Return the rows with their scores and losses, largest gap first."""
    from staytrue.data_selection.perplexity import scores

    scored = [(scores(loss, leave_out), loss, row) for loss, row in zip(row_losses, rows, strict=True)]
    scored.sort(key=lambda entry: -entry[0]["gap"])
    return [replace(row, extra={**row.extra, **_columns(numbers, loss)}) for numbers, loss, row in scored]


def _columns(numbers: Mapping[str, float], loss: Losses) -> dict[str, Any]:
    """Return the columns that a scored row has beside its turns."""
    nats = {ALIGNED: loss.aligned, **loss.misaligned}
    return {
        "scores": {name: round(number, 6) for name, number in numbers.items()},
        "nats": {name: round(value, 6) for name, value in nats.items()},
        "tokens": loss.tokens,
    }
