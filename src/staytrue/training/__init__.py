"""Defenses inside a trainer: hooks, penalties, auxiliary batches, TRL trainers."""
