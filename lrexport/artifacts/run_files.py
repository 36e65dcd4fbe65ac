"""Names of the files of a run: DENSE is the start, BASELINE the same network trained on for the comparison."""

from __future__ import annotations

RECORD = "run.json"
DENSE, BASELINE = "dense.safetensors", "baseline.safetensors"
SVD, MODEL = "svd.safetensors", "model.safetensors"
DENSE_ONNX, MODEL_ONNX = "dense.onnx", "model.onnx"
DENSE_INT8, MODEL_INT8 = "dense.int8.onnx", "model.int8.onnx"
LOG, CHECKPOINTS = "log.jsonl", "checkpoint"
