"""Judges of answers: a model behind an endpoint, or a model in this process."""
