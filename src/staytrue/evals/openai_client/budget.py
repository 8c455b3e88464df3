"""A hard limit on calls and dollars: a call is charged its most before it is sent, and refunded by the server's usage.

A token is at least one byte, so the most is known before the call, and the sum never exceeds the limit. No torch, no
openai.
"""

from __future__ import annotations

import copy
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import OPENAI, Address


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    read: float
    written: float

    def of(self, read: float, written: float) -> float:
        """Dollars for so many tokens."""
        return (read * self.read + written * self.written) / 1e6


FREE = Price(0, 0)

# OpenAI's standard rates, the same in several public price lists between March and June 2026, among them GitHub's
# (docs, data/tables/copilot/models-and-pricing.yml). The first snapshot of gpt-4o kept the rates of May 2024. Rates for
# cached input are lower; they are not counted on.
_PRICES = {
    "gpt-4o-2024-05-13": Price(5.00, 15.00),
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
}


def known_price(address: Address) -> Price | None:
    """OpenAI's price of a model or of a dated snapshot of it; free on this machine; else None."""
    if address.is_local:
        return FREE
    if address.url != OPENAI:
        return None
    return _PRICES.get(address.model) or _PRICES.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", address.model))


def parse_price(text: str) -> Price:
    """The price in `IN,OUT`, dollars for a million tokens.

    Raises:
        RequestError: these are not two numbers from 0 up.
    """
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise RequestError(f"--price {text} is no price. Write IN,OUT in dollars per million tokens, e.g. 0.15,0.60.")
    return Price(read, written)


@dataclass
class _Spending:
    """Calls and dollars so far; a call in flight counts its most."""

    calls: int = 0
    dollars: float = 0.0
    in_flight: int = 0


class Budget:
    """The most calls and dollars of a command, for all its endpoints and threads; without limits it only counts.

    Every HTTP request counts, also a failed one. An error response costs nothing. A request without a response may have
    been paid for, so it counts in full.
    """

    def __init__(self, max_calls: int | None = None, max_cost: float | None = None, price: Price | None = None) -> None:
        """Set the limits.

        Args:
            max_calls: the most requests.
            max_cost: the most US dollars.
            price: of every endpoint; None for the known prices of OpenAI's models, and free on this machine.

        Raises:
            RequestError: a limit that is not positive.
        """
        if max_calls is not None and max_calls < 1:
            raise RequestError(f"--max-calls {max_calls} allows no call. Give 1 or more, or leave it out.")
        if max_cost is not None and not 0 < max_cost < math.inf:
            raise RequestError(f"--max-cost {max_cost} is no budget. Give dollars above 0, or leave it out.")
        self._max_calls, self._max_cost, self._price = max_calls, max_cost, price
        self._all = self._endpoint = _Spending()
        self._changed = threading.Condition()

    def for_endpoint(self, address: Address) -> Budget:
        """The same limits, shared, at one endpoint's price; `describe` covers that endpoint alone.

        Raises:
            RequestError: a limit in dollars for an endpoint without a price.
        """
        budget = copy.copy(self)
        budget._endpoint, budget._price = _Spending(), self._price or known_price(address)
        if self._max_cost is not None and budget._price is None:
            raise RequestError(
                f"--max-cost {self._max_cost} needs the price of {address}. Add --price IN,OUT in dollars per million "
                "tokens."
            )
        return budget

    def begin(self, read: int, written: int) -> float:
        """Charge a call that reads and writes at most so many tokens, and return the charge in dollars.

        If only calls in flight stand in the way, it waits for their refunds.

        Raises:
            RequestError: the budget is reached.
        """
        most = self._price.of(read, written) if self._price else 0.0
        with self._changed:
            self._changed.wait_for(lambda: self._fits(most) or not self._all.in_flight)
            if self._max_calls is not None and self._all.calls >= self._max_calls:
                raise self._reached("--max-calls")
            if not self._fits(most):
                raise self._reached("--max-cost")
            self._count(1, most)
            return most

    def end(self, most: float, usage: Mapping[str, Any] | None) -> None:
        """Refund a call by the server's `usage`; {} for a call that cost nothing, None for an unknown cost."""
        counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
        read, written = (n if isinstance(n, int) and n >= 0 else None for n in counts)
        cost = 0.0 if usage == {} else most
        if self._price and read is not None and written is not None:
            cost = self._price.of(read, written)
        with self._changed:
            self._count(-1, cost - most)
            self._changed.notify_all()

    def describe(self) -> str:
        """Calls to this endpoint and their cost so far."""
        return self._describe(self._endpoint)

    def _fits(self, most: float) -> bool:
        return self._max_cost is None or self._all.dollars + most <= self._max_cost

    def _count(self, in_flight: int, dollars: float) -> None:
        """Count a call when it begins (1) and its refund when it ends (-1)."""
        for spending in (self._all,) if self._endpoint is self._all else (self._all, self._endpoint):
            spending.calls += max(in_flight, 0)
            spending.dollars += dollars
            spending.in_flight += in_flight

    def _describe(self, spending: _Spending) -> str:
        calls = f"{spending.calls:,} call{'' if spending.calls == 1 else 's'}"
        return (
            f"{calls}, about ${spending.dollars:.4f}" if self._price not in (None, FREE) or spending.dollars else calls
        )

    def _reached(self, option: str) -> RequestError:
        return RequestError(
            f"The budget is reached: {self._describe(self._all)}. Everything paid for is kept; go on with a larger "
            f"{option}."
        )
