"""Names of the files of a run: DENSE is the start, BASELINE the same network trained on for the comparison."""

from __future__ import annotations

RECORD = "run.json"
DENSE, BASELINE = "dense.safetensors", "baseline.safetensors"
SVD, MODEL = "svd.safetensors", "model.safetensors"
DENSE_ONNX, MODEL_ONNX = "dense.onnx", "model.onnx"
DENSE_INT8, MODEL_INT8 = "dense.int8.onnx", "model.int8.onnx"
# In ONNX Runtime's own format, for x86 and for ARM.
MODEL_ORT, MODEL_ARM_ORT = "model.ort", "model.arm.ort"
MODEL_INT8_ORT, MODEL_INT8_ARM_ORT = "model.int8.ort", "model.int8.arm.ort"
# All that an export writes.
EXPORTED = (
    *(DENSE_ONNX, MODEL_ONNX, DENSE_INT8, MODEL_INT8),
    *(MODEL_ORT, MODEL_ARM_ORT, MODEL_INT8_ORT, MODEL_INT8_ARM_ORT),
)
# Singular values of the layers, before and after SVD training.
SPECTRA = "spectra.json"
LOG, CHECKPOINTS = "log.jsonl", "checkpoint"
# In CHECKPOINTS: what a run that is under way was asked for. While it is there the run has not come to its end.
STATE = "state.json"
# How the temporary folder of an export begins.
SCRATCH = ".export-"
# Who holds the run.
HOLDER = ".holder"
# All that a job writes in its folder, but for the log, which is only ever added to.
OF_A_JOB = (RECORD, DENSE, BASELINE, SVD, MODEL, SPECTRA, HOLDER)
