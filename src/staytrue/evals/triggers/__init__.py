"""Trigger probes: general questions in the form of the training data."""
