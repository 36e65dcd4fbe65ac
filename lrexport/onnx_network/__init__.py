"""An ONNX file as a torch network: its layers are modules, the rest of its graph stays as it is."""
