"""Who answered: what was asked for, and what the server said it was, call by call. No openai."""

from __future__ import annotations

import threading
from typing import Any

from staytrue.evals.openai_client.address import Address


class Who:
    """The models and fingerprints that an endpoint's answers named; may be told of them by several threads."""

    def __init__(self, address: Address) -> None:
        self._address, self._lock = address, threading.Lock()
        self._models: set[str] = set()
        self._fingerprints: set[str] = set()

    def add(self, model: str, fingerprint: str) -> None:
        """An answer said who gave it; "" where it did not."""
        with self._lock:
            self._models |= {model} - {""}
            self._fingerprints |= {fingerprint} - {""}

    def describe(self) -> dict[str, Any]:
        """What is kept beside the answers, or the verdicts."""
        with self._lock:
            return {
                "model": self._address.model,
                "url": self._address.url,
                "answered_by": sorted(self._models),
                "fingerprints": sorted(self._fingerprints),
            }
