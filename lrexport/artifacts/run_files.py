"""Names of the files of a run: DENSE is the start, BASELINE the same network trained on for the comparison."""

from __future__ import annotations

import re

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
_BELOW = {  # what lrexport makes in its folders, by the folder's name
    CHECKPOINTS: re.compile(
        rf"{re.escape(STATE)}|{re.escape(PRUNED)}|(dense|svd|fine-tune|baseline)-[^/]*\.(?P<hash>[0-9a-f]{{16}})\.safetensors"
    ),
    LOGS: re.compile(r"(mlflow|wandb)\.id"),
}


def checkpoint_hash(name: str) -> str | None:
    """The hash of its content in the name of a checkpoint of training; None for every other name."""
    match = _BELOW[CHECKPOINTS].fullmatch(name)
    return match["hash"] if match is not None else None


def is_ours(name: str) -> bool:
    """Whether lrexport ever makes a file or folder of that name, relative to the folder of a run or a sweep."""
    folder, _, below = name.partition("/")
    if not below:
        return name in OF_A_RUN or name in OF_A_SWEEP or name == LOGS
    return folder in _BELOW and _BELOW[folder].fullmatch(below) is not None
