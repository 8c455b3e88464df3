"""Scores a pool of safe conversations by the perplexity gap between aligned and misaligned models."""
