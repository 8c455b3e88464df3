"""Measuring a model: questions, answers, verdicts, and rates with intervals."""
