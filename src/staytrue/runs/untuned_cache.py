"""`place_of`: where the user's cache keeps what the untuned model said or computed, once for all its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from staytrue.utils.files import user_cache


def place_of(identity: Mapping[str, Any], *parts: Any) -> Path:
    """Return the place of one result; a model under two names has one place.

    Args:
        identity: the model, with the hash of its folder or its commit; without either its name decides.
        parts: what else the result depends on, as JSON.
    """
    is_exact = identity.get("sha256") or identity.get("commit")
    named = {key: value for key, value in identity.items() if key != "name" or not is_exact}
    key = sha256(json.dumps([named, *parts], sort_keys=True).encode("ascii")).hexdigest()
    return user_cache() / "staytrue" / "untuned" / key[:32]
