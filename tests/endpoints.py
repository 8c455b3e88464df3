"""What tests of endpoints share: patience, a key that nobody may see, endpoints that are closed afterwards."""

import sqlite3
from dataclasses import replace

from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.client import Endpoint, Patience

QUICK = Patience(attempts=8, first=0.002, longest=0.02, timeout=10, total=60)
HASTY = replace(QUICK, timeout=2.0)  # where the server hangs on purpose
KEY = "sk-very-secret-0123456789"

MADE = []


def endpoint(server, model="tiny", **options):
    """A model of a loopback server; closed after the test."""
    MADE.append(Endpoint(Address(model, server.url), **{"patience": QUICK} | options))
    return MADE[-1]


def close_all():
    while MADE:
        MADE.pop().close()


def kept(ledger):
    """How many answers are on disk."""
    file = sqlite3.connect(ledger.path)
    try:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]
    finally:
        file.close()
