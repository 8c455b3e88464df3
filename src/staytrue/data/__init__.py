"""Rows of conversations: reading, checking, tokens and labels, held-out rows."""
