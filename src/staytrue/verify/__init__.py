"""`staytrue verify`: checks, from a run's files alone, that each of its defenses acted."""
