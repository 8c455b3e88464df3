"""Persona vectors: extraction, files, and a sweep over layers and strengths."""
