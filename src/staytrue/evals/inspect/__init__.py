"""Inspect: our probes as its tasks, our results as its logs."""
