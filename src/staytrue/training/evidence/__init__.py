"""Evidence that the defenses of a run act, measured beside the code that applies them; `staytrue verify` reads it."""
