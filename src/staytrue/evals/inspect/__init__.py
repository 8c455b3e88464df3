"""Inspect, the UK AI Security Institute's framework: our probes as its tasks, our results as its logs."""
