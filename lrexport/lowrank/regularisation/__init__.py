"""Regularisers of SVD training, and their strength layer by layer."""
