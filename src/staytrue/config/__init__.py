"""Recipes and the trainer settings they may hold."""
