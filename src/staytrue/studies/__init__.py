"""Studies: many runs compared in one table. The demo is a study."""
