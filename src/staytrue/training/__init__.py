"""Defenses inside a trainer: hooks, penalties, auxiliary batches, TRL trainers."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # trl sends a usage ping when a trainer is constructed
