"""The untouched twin of a run: which models have one, how much of it is made, and what other runs have made of it."""
