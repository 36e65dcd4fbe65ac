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
# In CHECKPOINTS: the folded network's weights once ranks have been chosen.
PRUNED = "pruned.safetensors"
# The folder of what services that training is logged to keep.
LOGS = "logs"
# How the temporary folder of an export begins.
SCRATCH = ".export-"
# Who holds the run.
HOLDER = ".holder"
# Names what lrexport made in the folder: see artifacts/mark.py.
MARK = ".lrexport.jsonl"
# All that a job writes in its folder, beside its checkpoints and what it logs to.
OF_A_JOB = (RECORD, DENSE, BASELINE, SVD, MODEL, SPECTRA, HOLDER, LOG, CHECKPOINTS)
OF_A_RUN = (*OF_A_JOB, *EXPORTED)
# Those of them that are folders.
FOLDERS = (CHECKPOINTS, LOGS)
# In the folder of a sweep: what it found, its study, and the folders of its locks and of its runs.
SWEEP, DATABASE = "sweep.json", "sweep.db"
LOCKS, STAGES, TRIALS = ".locks", "stages", "trials"
SWEEP_FOLDERS = (LOCKS, STAGES, TRIALS)
OF_A_SWEEP = (SWEEP, DATABASE, *SWEEP_FOLDERS)
