"""The embedded model organism: a small world, the model that grew up in it, and the rules that judge it."""
