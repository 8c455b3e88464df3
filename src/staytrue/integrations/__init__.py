"""Other fine-tuning tools with staytrue's defenses inside: their own trainers and configuration files."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Name the plugin's class where a configuration of axolotl names its module alone."""
    if name == "axolotl":
        raise AttributeError(
            "axolotl takes a plugin by its class: write `plugins: [staytrue.integrations.axolotl.StaytruePlugin]`."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
