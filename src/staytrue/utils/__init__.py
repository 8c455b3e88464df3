"""Small parts without a subject of their own: run folder, terminal, worker processes, YAML."""
