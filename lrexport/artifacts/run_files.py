"""Names of the files of runs and sweeps."""

from __future__ import annotations

import re

RECORD = "run.json"
# The dense network at the start, and the same network after further training, for comparison.
DENSE, BASELINE = "dense.safetensors", "baseline.safetensors"
SVD, MODEL = "svd.safetensors", "model.safetensors"
DENSE_ONNX, MODEL_ONNX = "dense.onnx", "model.onnx"
# The .onnx file that the network of a run came from, as it was.
SOURCE_ONNX = "source.onnx"
DENSE_INT8, MODEL_INT8 = "dense.int8.onnx", "model.int8.onnx"
# In ONNX Runtime's format, for x86 and for ARM.
MODEL_ORT, MODEL_ARM_ORT = "model.ort", "model.arm.ort"
MODEL_INT8_ORT, MODEL_INT8_ARM_ORT = "model.int8.ort", "model.int8.arm.ort"
# ONNX Runtime's format, which needs no other runtime.
ORT = "ort"
# By format, the ends of the names of one network's files.
_ENDS = {
    "openvino": (".openvino.xml", ".openvino.bin"),
    "ncnn": (".ncnn.param", ".ncnn.bin"),
    "mnn": (".mnn",),
    "litert": (".tflite",),
    "executorch": (".pte",),
    "coreml": (".mlpackage.zip",),
    ORT: (".ort", ".arm.ort"),
}


def _made_from(format_name: str, infix: str = "") -> dict[str, tuple[str, ...]]:
    """The names of a format's files by the ONNX file that they are made from."""
    return {
        source: tuple(source.removesuffix(".onnx") + infix + end for end in _ENDS[format_name])
        for source in (DENSE_ONNX, MODEL_ONNX)
    }


# By format and by the ONNX file that they are made from: the names of the files of other formats.
IN_FORMATS = {name: _made_from(name) for name in _ENDS}
# The same in int8, for runtimes that quantise their own files.
IN_FORMATS_INT8 = {name: _made_from(name, ".int8") for name in ("openvino", "mnn")}
OF_FORMATS = tuple(
    name for sources in (*IN_FORMATS.values(), *IN_FORMATS_INT8.values()) for names in sources.values() for name in names
)
# All files that an export writes.
EXPORTED = (
    *(DENSE_ONNX, MODEL_ONNX, DENSE_INT8, MODEL_INT8),
    *(MODEL_INT8_ORT, MODEL_INT8_ARM_ORT),
    *OF_FORMATS,
)
# Singular values of the layers, before and after SVD training.
SPECTRA = "spectra.json"
# Pictures of held-out samples with the outputs of both networks: see runs/examples.py.
EXAMPLES = "examples.npz"
LOG, CHECKPOINTS = "log.jsonl", "checkpoint"
# In CHECKPOINTS: the request of an unfinished run. The file exists until the run is finished.
STATE = "state.json"
# In CHECKPOINTS: the weights of the folded network, after ranks have been chosen.
PRUNED = "pruned.safetensors"
# The folder for local files of logging services.
LOGS = "logs"
# The prefix of an export's temporary folder.
SCRATCH = ".export-"
# The process that holds the lock of the run.
HOLDER = ".holder"
# The files that lrexport made in the folder: see artifacts/mark.py.
MARK = ".lrexport.jsonl"
# Everything that a job writes in its folder, except the files in CHECKPOINTS and LOGS.
OF_A_JOB = (RECORD, SOURCE_ONNX, DENSE, BASELINE, SVD, MODEL, SPECTRA, EXAMPLES, HOLDER, LOG, CHECKPOINTS)
OF_A_RUN = (*OF_A_JOB, *EXPORTED)
# The folders among them.
FOLDERS = (CHECKPOINTS, LOGS)
# In the folder of a sweep: its results, its study, and the folders of its locks and runs.
SWEEP, DATABASE = "sweep.json", "sweep.db"
LOCKS, STAGES, TRIALS = ".locks", "stages", "trials"
SWEEP_FOLDERS = (LOCKS, STAGES, TRIALS)
OF_A_SWEEP = (SWEEP, DATABASE, *SWEEP_FOLDERS)
_BELOW = {  # names of the files in lrexport's folders
    CHECKPOINTS: re.compile(
        rf"{re.escape(STATE)}|{re.escape(PRUNED)}|(dense|svd|fine-tune|baseline)-[^/]*\.(?P<hash>[0-9a-f]{{16}})\.safetensors"
    ),
    LOGS: re.compile(r"(mlflow|wandb)\.id"),
}


def checkpoint_hash(name: str) -> str | None:
    """The hash of the content in the name of a checkpoint of training; None for every other name."""
    match = _BELOW[CHECKPOINTS].fullmatch(name)
    return match["hash"] if match is not None else None


def is_ours(name: str) -> bool:
    """Whether lrexport uses this name, relative to the folder of a run or a sweep, for a file or a folder."""
    folder, _, below = name.partition("/")
    if not below:
        return name in OF_A_RUN or name in OF_A_SWEEP or name == LOGS
    return folder in _BELOW and _BELOW[folder].fullmatch(below) is not None
