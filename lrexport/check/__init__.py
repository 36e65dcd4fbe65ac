"""A check from end to end: find models, read them, judge them. This process imports neither torch nor onnx."""
