"""The reference model of a run: which models have one, which rows and layers are computed, and a cache of them."""
