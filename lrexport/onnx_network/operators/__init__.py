"""Operators of ONNX in torch, with gradients: one file a family."""
