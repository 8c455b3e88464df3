"""From `--judge` and its limits to a judge, with the verdicts that were paid for before."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.generation.endpoint import EndpointGenerator
from staytrue.evals.judges.named import Local, parse
from staytrue.evals.openai_client.address import Address, key_for
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.evals.types import Judge
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.utils.files import user_cache


def judge(text: str, budget: Budget, say: Callable[[str], None]) -> Judge:
    """The judge that a text names; before the first call, `say` gets a line about what leaves the machine.

    Raises:
        RequestError: the text names no judge, or one that cannot be used here.
    """
    named = parse(text)
    if isinstance(named, Address):
        from staytrue.evals.judges.endpoint import EndpointJudge

        remote = EndpointJudge(Endpoint(named, key_for(named), budget, say=say), response_cache())
        say(remote.notice())
        return remote
    if isinstance(named, Local):
        return _local(named.model, say)
    from staytrue.organism.rules import Rules

    return Rules()


def generator(address: Address, budget: Budget, say: Callable[[str], None]) -> EndpointGenerator:
    """A generator of answers with an endpoint's model; `say` as for `judge`."""
    remote = EndpointGenerator(Endpoint(address, key_for(address), budget, say=say))
    say(remote.notice())
    return remote


def response_cache() -> ResponseCache:
    """The user's paid verdicts: `$XDG_CACHE_HOME/staytrue/judgments.sqlite`, by default in ~/.cache.

    Raises:
        RequestError: it cannot be read or written.
    """
    file, before = (user_cache() / name / "judgments.sqlite" for name in ("staytrue", "holdfast"))
    if before.exists() and not file.exists():  # paid for before the project was renamed
        _copy_database(before, file)
    return ResponseCache(file)


def _local(name: str, say: Callable[[str], None]) -> Judge:
    """A model in this process, which is loaded when the first answer needs it."""
    from staytrue.evals.judges.local import LocalJudge

    source = _local_source(name)
    identity = model_source.identity(source)

    def load() -> Any:
        say(f"judge: loading {source.name}")
        return loading.to_device(loading.load_model(source))

    return LocalJudge.loaded_later(
        load,
        load_tokenizer(source),
        (identity.get("sha256") or identity.get("commit") or "")[:12],
        dtype=str(loading.precision()),
        device=loading.device(),
        cache=response_cache(),
        written=f"local:{name}",
        say=say,
    )


def _local_source(name: str) -> model_source.Source:
    """The model of a name as in a recipe; a word that names none is a folder."""
    source = model_source.find(name)
    is_hub_name = not Path(source.place).is_dir() and "/" in name
    return source if is_hub_name or Path(source.place).is_dir() else model_source.find(f"./{name}")


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database with its write-ahead log; of several processes, the first one's copy stays.

    Raises:
        RequestError: the source cannot be read, or the target cannot be written.
    """
    content = _read_database(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix="copy-") as copy:
            copy.write(content)
            copy.flush()
            os.fsync(copy.fileno())
            os.link(copy.name, target)  # a rename would replace another process's copy, and its new verdicts
    except FileExistsError:
        pass
    except OSError as error:
        raise RequestError(
            f"The paid verdicts cannot be copied to {target}: {error.strerror}. Make room, check the folder's rights, "
            "or set XDG_CACHE_HOME to another folder."
        ) from None


def _read_database(path: Path) -> bytes:
    """A SQLite database as one file's content, with the rows in its write-ahead log."""
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            database.execute("SELECT count(*) FROM answers")  # refuses a file that is no database of ours
            return database.serialize()
    except sqlite3.OperationalError as error:  # locked, or without rights
        raise RequestError(
            f"The paid verdicts in {path} cannot be read now: {error}. Stop other processes that use the file, check "
            "its rights, and run again."
        ) from None
    except sqlite3.Error as error:
        raise RequestError(
            f"The paid verdicts in {path} cannot be read: {error}. Move the file away to judge without them."
        ) from None
