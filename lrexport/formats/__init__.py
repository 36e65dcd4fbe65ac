"""Export: ONNX files, checked, compared with torch, simplified, and compared again."""
