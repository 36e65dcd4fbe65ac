"""Repair after folding: refit pairs to the outputs of their dense layers."""
