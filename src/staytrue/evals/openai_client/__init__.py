"""Calls to OpenAI-compatible endpoints: where, how often, for how much, and never twice for the same."""
