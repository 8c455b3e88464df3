"""Calls to OpenAI-compatible endpoints: address, budget, retries, errors and the response cache."""
