"""Sweeps: many compressions of one network, and their Pareto front of accuracy against cost."""
