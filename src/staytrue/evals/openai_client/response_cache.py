"""The response cache: one SQLite file of paid responses, so that no judge is paid twice for the same question.

A row's key is a hash of everything that decides the response; its value is JSON. A row is on disk before it is used, so
a killed run loses at most the calls in flight. Several threads and several processes may share the file. No torch.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError

_SCHEMA = 1
_PATIENCE = 30.0  # seconds for another process to finish writing


def key(**parts: Any) -> str:
    """SHA-256 of everything that decides a response."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ResponseCache:
    """Paid responses by key.

    Attributes:
        hits: how many were found.
        calls: how many had to be paid for.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            RequestError: it is damaged, is another database, or cannot be opened.
        """
        self.path = path
        self.hits = self.calls = 0
        self._lock = threading.Lock()
        self._key_locks: dict[str, threading.Lock] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._file.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The value of a key, or None."""
        try:
            with self._lock:
                row = self._file.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else dict(json.loads(row[0]))
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._unusable(error) from None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Store a value, which is on disk when this returns; an earlier value of another process stays."""
        text = json.dumps(value, allow_nan=False)
        try:
            with self._lock:
                self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def once(self, key: str, make: Callable[[], dict[str, Any]], read: Callable[[dict[str, Any]], Any] = dict) -> Any:
        """The value of a key, as `read` returns it; without a value `make` is called, once for all threads.

        If `make` raises, nothing is stored. A stored value that `read` cannot read is replaced by a new one.
        """
        with self._key_locks.setdefault(key, threading.Lock()):
            stored = self.get(key)
            if stored is not None:
                try:
                    result = read(stored)
                except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                    self._remove(key)
                else:
                    with self._lock:
                        self.hits += 1
                    return result
            value = make()
            self.put(key, value)
        with self._lock:
            self.calls += 1
        return read(value)

    def has_answered(self, endpoint: str) -> bool:
        """Whether an endpoint, by a key of its address and secret, ever gave a response that could be used."""
        try:
            with self._lock:
                return bool(self._file.execute("SELECT 1 FROM answered WHERE key = ?", (endpoint,)).fetchone())
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def mark_answered(self, endpoint: str) -> None:
        """Store that an endpoint gave a response that could be used."""
        try:
            with self._lock:
                self._file.execute("INSERT OR IGNORE INTO answered VALUES (?)", (endpoint,))
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _remove(self, key: str) -> None:
        try:
            with self._lock:
                self._file.execute("DELETE FROM answers WHERE key = ?", (key,))
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        self._file.execute("BEGIN IMMEDIATE")  # no other process creates the table at the same time
        version = self._file.execute("PRAGMA user_version").fetchone()[0]
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != _SCHEMA and (version or tables):
            raise RequestError(
                f"{self.path} is a database of something else (version {version}). Move it away, or set "
                "XDG_CACHE_HOME to another folder."
            )
        self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._file.execute("CREATE TABLE IF NOT EXISTS answered (key TEXT PRIMARY KEY)")  # endpoints
        self._file.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._file.execute("COMMIT")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")  # a paid row outlives a power cut

    def _unusable(self, error: Exception) -> RequestError:
        if isinstance(error, OSError | sqlite3.OperationalError):
            return RequestError(
                f"The cache of paid answers {self.path} cannot be used here: {error}. Make room, check its rights, or "
                "set XDG_CACHE_HOME to a folder on a local disk."
            )
        return RequestError(
            f"The cache of paid answers {self.path} is damaged: {error}. Move it away, with the files "
            f"{self.path.name}-wal and -shm beside it, and run again; what it held is asked anew."
        )
