"""Factors: SVD form, moments of the inputs, truncation, folding."""
