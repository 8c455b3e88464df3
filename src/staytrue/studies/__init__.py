"""Studies: many runs, compared in one table; the demo is one."""
