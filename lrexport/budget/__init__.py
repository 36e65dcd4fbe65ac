"""Budgets: limits out of TOML, what a model measures, and a verdict for each. Nothing here imports torch or onnx."""
