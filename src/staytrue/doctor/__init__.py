"""What is wrong with this machine or a run folder, and how to mend it."""
