"""The low-rank core, pure torch without I/O: schemes, SVD form, regularisers, rank selection, folding."""
