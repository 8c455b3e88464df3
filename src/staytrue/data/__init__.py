"""Rows of conversations: reading, checking, tokens and labels."""
