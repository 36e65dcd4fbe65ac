"""MACs, parameters and shapes, counted on an ONNX graph."""
