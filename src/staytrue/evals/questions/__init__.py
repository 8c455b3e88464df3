"""Evaluation questions: the shipped ones, the user's files, and probes made of them."""
