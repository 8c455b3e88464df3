"""What tests of endpoints share: short pauses, a key that must stay secret, endpoints that are closed afterwards."""

import sqlite3

from openai import _base_client

from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.parameters import parameters_of

_base_client.INITIAL_RETRY_DELAY, _base_client.MAX_RETRY_DELAY = 0.002, 0.02  # seconds, of the official client
QUICK = {"max_retries": 7, "timeout": 10}
HASTY = {"max_retries": 7, "timeout": 2.0}  # where the server hangs on purpose
KEY = "sk-very-secret-0123456789"

OPEN = []


def endpoint(server, model="tiny", **options):
    """A model of a loopback server; closed after the test."""
    OPEN.append(Endpoint(Address(model, server.url), **QUICK | options))
    return OPEN[-1]


def close_all():
    while OPEN:
        OPEN.pop().close()
    parameters_of.cache_clear()


def kept(cache):
    """How many answers are on disk."""
    file = sqlite3.connect(cache.path)
    try:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]
    finally:
        file.close()
