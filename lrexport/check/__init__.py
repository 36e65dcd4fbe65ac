"""A check from end to end: models found, looked into, judged. Neither torch nor onnx is imported in this process."""
