"""Budgets: limits from TOML, figures of a model, and a verdict for each limit. Nothing here imports torch or onnx."""
