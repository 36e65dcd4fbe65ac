"""Single layers: kernels, schemes, pairs, and the cost of each layer."""
