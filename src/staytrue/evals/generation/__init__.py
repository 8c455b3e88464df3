"""Answers to questions: from a local model, an endpoint, or a file."""
