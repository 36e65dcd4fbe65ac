"""Export: ONNX files that were checked, compared with torch, simplified, and checked again."""
