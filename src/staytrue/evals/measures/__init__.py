"""Measures of a fine-tune without a judge, from likelihoods and from words; one file each."""
