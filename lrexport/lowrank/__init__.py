"""The low-rank core, in pure torch without I/O: schemes, SVD form, regularisers, rank selection, folding."""
