"""MACs, parameters and shapes of an ONNX graph."""
