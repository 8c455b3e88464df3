"""One run: one model trained from a recipe, or evaluated, in one folder.

A run knows nothing of other runs. Many runs, and the table that compares them, are a study (`staytrue.studies`).
"""
