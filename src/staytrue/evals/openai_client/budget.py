"""What calls may cost: counted and reserved before each call, settled by what the server says it used.

A reservation is the most that a call can cost (a token is at least one byte), so the sum is never more than the limit,
however many threads there are. No torch, no openai.
"""

from __future__ import annotations

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
    """What OpenAI asks for a model, or for a dated snapshot of it; nothing on this machine; else None."""
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
class _SoFar:
    """What has been counted, for one endpoint or for all of a command."""

    calls: int = 0
    spent: float = 0.0
    reserved: float = 0.0  # by calls in the air

    def told(self, priced: bool) -> str:
        """For a person; in dollars too, where something has a price."""
        calls = f"{self.calls:,} call{'' if self.calls == 1 else 's'}"
        return f"{calls}, about ${self.spent:.4f}" if priced or self.spent else calls


class Budget:
    """How many calls may be made and what they may cost, for all threads of a run; without limits it only counts.

    Every request counts, one that failed too. What failed before it was answered costs nothing; of what was cut off on
    its way back nobody knows, so it counts in full.
    """

    def __init__(self, max_calls: int | None = None, max_cost: float | None = None, price: Price | None = None) -> None:
        """Set the limits.

        Raises:
            RequestError: a limit that is none, or a limit in dollars without a price.
        """
        if max_calls is not None and max_calls < 1:
            raise RequestError(f"--max-calls {max_calls} allows no call. Give 1 or more, or leave it out.")
        if max_cost is not None and not 0 < max_cost < math.inf:
            raise RequestError(f"--max-cost {max_cost} is no budget. Give dollars above 0, or leave it out.")
        if max_cost is not None and price is None:
            raise RequestError(
                f"--max-cost {max_cost} needs the model's price. Add --price IN,OUT in dollars per million tokens."
            )
        self._max_calls, self._max_cost, self._price = max_calls, max_cost, price
        self._so_far, self._own = _SoFar(), _SoFar()
        self._settled = threading.Condition()

    def at(self, price: Price | None) -> Budget:
        """The same limits, counted together, for an endpoint with another price; it tells its own calls only.

        Raises:
            RequestError: a limit in dollars without a price.
        """
        other = Budget(self._max_calls, self._max_cost, price)
        other._so_far, other._settled = self._so_far, self._settled
        return other

    def begin(self, read: int, written: int) -> float:
        """Count a call that reads and writes at most so many tokens, and reserve its cost; the reservation.

        Where only calls in flight stand in the way it waits for them.

        Raises:
            RequestError: the budget is reached.
        """
        most = self._price.of(read, written) if self._price else 0.0
        with self._settled:
            self._settled.wait_for(lambda: not self._so_far.reserved or self._fits(most))
            if self._max_calls is not None and self._so_far.calls >= self._max_calls:
                raise self._reached("--max-calls")
            if not self._fits(most):
                raise self._reached("--max-cost")
            self._so_far.calls += 1
            self._own.calls += 1
            self._so_far.reserved += most
            return most

    def end(self, reserved: float, usage: Mapping[str, Any] | None) -> None:
        """Settle a call by the server's `usage`; {} for one that cost nothing, None where nobody knows."""
        with self._settled:
            self._so_far.reserved = max(0.0, self._so_far.reserved - reserved)
            cost = self._cost(usage, reserved)
            self._so_far.spent += cost
            self._own.spent += cost
            if self._so_far.reserved < 1e-12:  # so that rounding leaves nobody waiting
                self._so_far.reserved = 0.0
            self._settled.notify_all()

    def told(self) -> str:
        """Calls to this endpoint and their cost so far, for a person."""
        return self._own.told(self._is_priced)

    @property
    def _is_priced(self) -> bool:
        return self._price not in (None, FREE)

    def _fits(self, most: float) -> bool:
        return self._max_cost is None or self._so_far.spent + self._so_far.reserved + most <= self._max_cost

    def _cost(self, usage: Mapping[str, Any] | None, reserved: float) -> float:
        if self._price is None or usage == {}:
            return 0.0
        counts = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
        read, written = (c if isinstance(c, int) and c >= 0 else None for c in counts)
        return reserved if read is None or written is None else self._price.of(read, written)

    def _reached(self, option: str) -> RequestError:
        told = self._so_far.told(self._is_priced)
        return RequestError(
            f"The budget is reached: {told}. Everything paid for is kept; go on with a larger {option}."
        )
