"""Measurement: MACs and bytes of an exported graph, and latency on a target."""
