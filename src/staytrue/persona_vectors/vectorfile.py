"""The vector file of `staytrue vector`: one tensor `vectors` (depth, D), and how it was made.

Row L - 1 is layer L's. The metadata are strings, some of them JSON: `schema`, `model`, `adapter`, `trait`, `rollouts`,
`seed`, `pairs_made`, `pairs_kept`, `judge`, `norms`, `versions`, `sweep`. The same vectors and facts give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.errors import RequestError
from staytrue.persona_vectors.traits import Trait
from staytrue.utils.files import refuse_pipe, write_atomic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Extraction:
    """The vectors of a model, and the answers they come from."""

    vectors: Tensor  # (depth, D) float32, row L - 1 for layer L
    norms: tuple[float, ...]  # per layer, the mean length of the activations at the answers' tokens, both sides
    pairs: int  # sampled
    kept: int  # of them, by the judge


_LONGEST = 100_000  # characters; of a longer trait the file keeps name and hash


def write(out: Path, vectors: Tensor, facts: Mapping[str, Any]) -> None:
    """Write the file atomically; facts that are not strings are written as JSON."""
    from safetensors.torch import save

    content = _ordered(save({"vectors": vectors.contiguous()}, _texts(facts)))
    write_atomic(out, content)


def unswept(path: Path) -> bool:
    """Whether a file is one of this version's without a sweep."""
    try:
        _, facts = read(path)
    except RequestError:
        return False
    return "sweep" not in facts and {"norms", "pairs_made", "pairs_kept"} <= facts.keys()


def extraction(path: Path) -> Extraction:
    """The extraction that a file holds."""
    vectors, facts = read(path)
    return Extraction(vectors, tuple(json.loads(facts["norms"])), int(facts["pairs_made"]), int(facts["pairs_kept"]))


def refuse_other(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a file whose vector was made in another way than these facts say; versions may differ.

    Raises:
        RequestError: the first fact that differs.
    """
    _, stored = read(path)
    texts = _texts(facts)
    for name in dict.fromkeys((*texts, *stored)):
        old, new = stored.get(name, "none"), texts.get(name, "none")
        if name != "versions" and old != new:
            raise RequestError(
                f"{path} holds a vector that was made in another way: {name} is {_short(old)}, not {_short(new)}. Give "
                "the options that it was made with, or choose another path with --out."
            )


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in facts.items()}


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The vectors (depth, D) and metadata of a file, read once and again when it has changed.

    Raises:
        RequestError: no such file, no vector file, or rows that are zero or not finite.
    """
    refuse_pipe(path)
    try:
        state = path.stat()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}. `staytrue vector` makes one.") from None
    vectors, facts = _read(path, state.st_mtime_ns, state.st_size)
    return vectors, dict(facts)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> tuple[Tensor, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as opened:
            vectors, facts = opened.get_tensor("vectors").float(), dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{path} is not a vector file ({error}); `staytrue vector` makes one.") from None
    if vectors.ndim != 2 or not bool(vectors.isfinite().all()) or not bool(vectors.abs().sum(-1).all()):
        raise RequestError(f"{path} holds zeros, infinities or no (depth, width) table; extract it again.")
    return vectors, facts


def facts_of(trait: Trait) -> dict[str, Any]:
    """The trait's prompts and questions, or their hash when they are long."""
    whole = asdict(trait)
    text = json.dumps(whole, ensure_ascii=False)
    if len(text) <= _LONGEST:
        return whole
    return {"name": trait.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order; the library writes them in a different one every time."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
