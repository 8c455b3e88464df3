"""Models: where their parts are, loading, the LM head and its losses."""
