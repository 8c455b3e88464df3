"""What is prepared before training: scores of a safe pool, persona vectors."""
