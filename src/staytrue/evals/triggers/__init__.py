"""Trigger probes: general questions in the shape of the training data."""
