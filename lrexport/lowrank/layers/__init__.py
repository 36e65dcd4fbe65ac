"""Single layers: kernels, schemes, pairs, and what each layer costs."""
