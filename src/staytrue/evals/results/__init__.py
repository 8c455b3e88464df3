"""Stored answers, verdicts on them, and the summary of both."""
