"""From `--judge` and its limits to a judge that can be asked, with what was paid for before."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.judges.named import Local, parse
from staytrue.evals.openai_client.address import Address, key_for
from staytrue.evals.openai_client.budget import FREE, Budget, known_price, parse_price
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.types import Judge
from staytrue.modeling import loading


class Limits:
    """What all calls of a command to endpoints may cost together: how many, and how many dollars.

    Args:
        max_calls: the most requests.
        max_cost: the most US dollars.
        price: of every endpoint, `IN,OUT` per million tokens; None for what OpenAI's models are known to cost, and
            nothing on this machine.

    Raises:
        RequestError: a limit or a price that is none.
    """

    def __init__(self, max_calls: int | None = None, max_cost: float | None = None, price: str | None = None) -> None:
        self._price = None if price is None else parse_price(price)
        self._whole = Budget(max_calls, max_cost, self._price or FREE)

    def budget(self, address: Address) -> Budget:
        """What is left of them, for one endpoint.

        Raises:
            RequestError: a limit in dollars for an endpoint without a price.
        """
        return self._whole.at(self._price or known_price(address))


def judge(text: str, limits: Limits, say: Callable[[str], None]) -> Judge:
    """The judge that a text names; before the first call to an endpoint `say` tells what leaves the machine.

    Raises:
        RequestError: it names none, or one that cannot be had; one sentence.
    """
    named = parse(text)
    if isinstance(named, Address):
        from staytrue.evals.judges.endpoint import EndpointJudge
        from staytrue.evals.openai_client.client import Endpoint

        made = EndpointJudge(Endpoint(named, key_for(named), limits.budget(named)), response_cache())
        say(made.where_to())
        return made
    if isinstance(named, Local):
        return _local(named.folder)
    from staytrue.organism.rules import Rules

    return Rules()


def _local(folder: Path) -> Judge:
    """A model in this process."""
    from staytrue.evals.judges.local import LocalJudge

    source = loading.find(str(folder.absolute()))
    identity = (source.identity()["sha256"] or "")[:12]
    model = loading.to_device(loading.load_model(source))
    return LocalJudge(model, loading.load_tokenizer(source), identity, response_cache())


def generator(address: Address, limits: Limits, say: Callable[[str], None]) -> Any:
    """An endpoint's model as a maker of answers."""
    from staytrue.evals.generation.endpoint import EndpointGenerator
    from staytrue.evals.openai_client.client import Endpoint

    made = EndpointGenerator(Endpoint(address, key_for(address), limits.budget(address)))
    say(made.where_to())
    return made


def response_cache() -> ResponseCache:
    """What was paid for, kept for this user: `$XDG_CACHE_HOME/staytrue/judgments.sqlite`, by default in ~/.cache.

    Raises:
        RequestError: it cannot be written there.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:
        raise RequestError("There is no home folder for what was paid for; set XDG_CACHE_HOME to a folder.") from None
    own, before = (folder / name / "judgments.sqlite" for name in ("staytrue", "holdfast"))
    if before.exists() and not own.exists():  # paid for before the project was renamed
        _copy_database(before, own)
    return ResponseCache(own)


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database whole; its file alone would lack what is still in the write-ahead log."""
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = target.with_suffix(".copying")
    try:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
        copy.replace(target)
    except sqlite3.Error as error:
        copy.unlink(missing_ok=True)
        raise RequestError(
            f"The paid verdicts in {source} cannot be read: {error}. Move the file away to judge without them."
        ) from None
