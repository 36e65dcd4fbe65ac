"""Sweeps: many compressions of one network, and the front of accuracy against cost that they find."""
