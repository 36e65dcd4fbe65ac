"""Measurement: MACs of a torch network and of an exported graph, bytes, and latency on the target."""
