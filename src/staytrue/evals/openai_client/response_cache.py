"""What was paid for, kept in one SQLite file: the same question to the same judge is never paid for twice.

A row's key is a hash of everything that decides the answer; its value is JSON. A row is on disk before its answer is
used, so a killed run loses at most the calls that were in flight. Several threads and several processes may share the
file. No torch.
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
_TURNS = 1024


def key(**parts: Any) -> str:
    """SHA-256 of everything that decides an answer."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ResponseCache:
    """Answers that were paid for, by key. `hits` were found, `calls` had to be made."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            RequestError: it is damaged, is no ledger, or cannot be opened here.
        """
        self.path = path
        self.hits = self.calls = 0
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_TURNS)]
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
        """Keep a value; on disk when this returns. What another process was quicker to keep stays."""
        text = json.dumps(value, allow_nan=False)
        try:
            with self._lock:
                self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value of a key, made if it is not there; threads that want the same one wait for the first.

        What `make` raises is passed on, and nothing is kept.
        """
        with self._turns[int(key[:8], 16) % _TURNS]:
            value = self.get(key)
            if value is not None:
                with self._lock:
                    self.hits += 1
                return value
            value = make()
            self.put(key, value)
        with self._lock:
            self.calls += 1
        return value

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        self._file.execute("BEGIN IMMEDIATE")  # no other process makes it at the same time
        version = self._file.execute("PRAGMA user_version").fetchone()[0]
        tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != _SCHEMA and (version or tables):
            raise RequestError(
                f"{self.path} is a database of something else (version {version}). Name another file for the cache."
            )
        self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._file.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._file.execute("COMMIT")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = FULL")  # a row that was paid for outlives a power cut, too

    def _unusable(self, error: Exception) -> RequestError:
        if isinstance(error, OSError | sqlite3.OperationalError):
            return RequestError(
                f"The cache of paid answers {self.path} cannot be used here: {error}. Make room, check its rights, or "
                "name a file on a local disk."
            )
        return RequestError(
            f"The cache of paid answers {self.path} is damaged: {error}. Move it away, with the files "
            f"{self.path.name}-wal and -shm beside it, and run again; what it held is asked anew."
        )
