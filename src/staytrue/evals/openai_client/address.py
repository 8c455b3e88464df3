"""The address of a model behind an OpenAI-compatible endpoint: `openai:MODEL[@URL]`. No openai."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from staytrue.errors import RequestError

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"  # the only source of a key, which is written nowhere

_PARTS = re.compile(r"openai:(?P<model>.+?)(?:@(?P<url>[a-zA-Z]+://.*))?")


@dataclass(frozen=True)
class Address:
    """One model at one endpoint."""

    model: str
    url: str = OPENAI  # the base URL, without a slash at its end

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        name = urlsplit(self.url).hostname or ""
        try:
            return name == "localhost" or ip_address(name).is_loopback
        except ValueError:  # a name such as 127.example.org may be anywhere
            return False

    def __str__(self) -> str:
        return f"openai:{self.model}" + ("" if self.url == OPENAI else f"@{self.url}")


def parse(text: str) -> Address:
    """The address in `openai:MODEL[@URL]`.

    Raises:
        RequestError: the text has another form, or the URL is invalid or holds a password or a query.
    """
    match = _PARTS.fullmatch(text.strip())
    if not match:
        raise RequestError(f"{text!r} names no model at an endpoint. Write openai:MODEL or openai:MODEL@URL.")
    model, url = match["model"], match["url"]
    if url is None:
        if "@" in model:
            raise RequestError(f"The URL in {text!r} lacks its beginning. Write @http://... or @https://... .")
        return Address(model)
    return Address(model, _checked(url, text))


def _checked(url: str, text: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        valid = False
    if not valid:
        raise RequestError(f"The URL in {text!r} cannot be used. Write http://HOST:PORT/v1 or https://HOST/v1.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise RequestError(
            f"The URL of model {text.split('@')[0]} holds a password or a query, which would be stored with the "
            f"results. Put the key into {KEY}, and name the bare URL."
        )
    return url.rstrip("/")


def key_for(address: Address) -> str | None:
    """The key in OPENAI_API_KEY; None if there is none and the endpoint is not OpenAI's.

    Raises:
        RequestError: OpenAI's own endpoint without a key, or a key that is invalid in a header.
    """
    key = os.environ.get(KEY)
    if not key and address.url == OPENAI:
        raise RequestError(f"{address} needs a key. Put it into the environment variable {KEY}.")
    if key and not re.fullmatch(r"[!-~]+", key):
        raise RequestError(f"The key in {KEY} holds a blank or a character that is not ASCII. Copy it again.")
    return key or None
