"""Did each defense of a run act? `staytrue verify` answers from the run's files alone."""
