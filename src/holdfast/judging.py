"""From `--judge` and its limits to a judge that can be asked, with what was paid for before."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import models
from holdfast.errors import RequestError
from holdfast.evals.calls.address import Address, key_for
from holdfast.evals.calls.budget import Budget, known_price, parse_price
from holdfast.evals.calls.ledger import Ledger
from holdfast.evals.judge import Judge
from holdfast.evals.judges.named import Local, parse


@dataclass(frozen=True)
class Limits:
    """What calls to endpoints may cost: how many, how many dollars, at which price (`IN,OUT` per million tokens)."""

    max_calls: int | None = None
    max_cost: float | None = None
    price: str | None = None

    def budget(self, address: Address) -> Budget:
        """The budget of one endpoint.

        Raises:
            RequestError: a limit that is none, or one in dollars without a price.
        """
        price = known_price(address) if self.price is None else parse_price(self.price)
        return Budget(self.max_calls, self.max_cost, price)


def judge(text: str, limits: Limits, say: Callable[[str], None]) -> Judge:
    """The judge that a text names; before the first call to an endpoint `say` tells what leaves the machine.

    Raises:
        RequestError: it names none, or one that cannot be had; one sentence.
    """
    named = parse(text)
    if isinstance(named, Address):
        from holdfast.evals.calls.endpoint import Endpoint
        from holdfast.evals.judges.endpoint import EndpointJudge

        made = EndpointJudge(Endpoint(named, key_for(named), limits.budget(named)), ledger())
        say(made.where_to())
        return made
    if isinstance(named, Local):
        from holdfast.evals.judges.local import LocalJudge

        source = models.find(str(named.folder.absolute()))
        identity = (source.identity()["sha256"] or "")[:12]
        model = models.to_device(models.load_model(source))
        return LocalJudge(model, models.load_tokenizer(source), identity, ledger())
    from holdfast.organism.rules import Rules

    return Rules()


def answering(address: Address, limits: Limits, say: Callable[[str], None]) -> Any:
    """An endpoint's model as a maker of answers."""
    from holdfast.evals.calls.endpoint import Endpoint
    from holdfast.evals.remote import Remote

    made = Remote(Endpoint(address, key_for(address), limits.budget(address)))
    say(made.where_to())
    return made


def ledger() -> Ledger:
    """What was paid for, kept for this user: `$XDG_CACHE_HOME/holdfast/judgments.sqlite`, by default in ~/.cache.

    Raises:
        RequestError: it cannot be written there.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:
        raise RequestError("There is no home folder for what was paid for; set XDG_CACHE_HOME to a folder.") from None
    return Ledger(folder / "holdfast" / "judgments.sqlite")
