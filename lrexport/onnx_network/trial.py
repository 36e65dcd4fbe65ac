"""Run a foreign ONNX file once in ONNX Runtime, in a child process with limits of memory and CPU time.

    python -m lrexport.onnx_network.trial FILE BYTES:SECONDS INPUTS OUTPUTS

INPUTS is a .npz file with the arrays ``input_0``, …, in the order of the graph; OUTPUTS gets ``output_0``, ….
A graph may never end, or ask for any amount of memory, so it does not run in the process of the command first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrexport.artifacts.onnx_child import confined
from lrexport.artifacts.onnx_files import ask_child
from lrexport.errors import InputError
from lrexport.text import first_line

_REFUSED = "refused"
_WITHOUT_ARRAYS = ("tensor(bfloat16)",)
_MOST_CHARACTERS = 400  # of ONNX Runtime's reason


def outputs_in_runtime(
    path: Path, names: Sequence[str], arrays: Sequence[Any], hint: str | None = None
) -> list[np.ndarray[Any, Any]]:
    """The outputs of the file for arrays by name of its inputs.

    Raises InputError with the reason, and ``hint``, if it does not run.
    """
    with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
        given, made = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, **{f"input_{number}": array for number, array in enumerate(arrays)})
        answer = ask_child(__name__, path, str(given), str(made), *names, runs=True)
        if _REFUSED in answer:
            raise InputError(f"ONNX Runtime does not run {path}: {answer[_REFUSED]}", hint)
        with np.load(made) as stored:
            return [stored[f"output_{number}"] for number in range(len(stored.files))]


def _run(name: str) -> dict[str, Any]:
    import onnxruntime

    given, made, *names = sys.argv[3:]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with np.load(given) as stored:
        feed = {each: stored[f"input_{number}"] for number, each in enumerate(names)}
    try:
        session = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
        declared = {item.name for item in session.get_inputs()}
        for item in session.get_outputs():
            if item.type in _WITHOUT_ARRAYS:
                return {_REFUSED: f"its output {item.name!r} is {item.type}, which has no arrays in Python"}
        outputs = session.run(None, {each: array for each, array in feed.items() if each in declared})
    except Exception as error:  # its exceptions have no common base
        return {_REFUSED: first_line(error).strip()[:_MOST_CHARACTERS]}
    for item, output in zip(session.get_outputs(), outputs, strict=True):
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
            return {_REFUSED: f"its output {item.name!r} is {item.type}; expected a tensor of numbers"}
    np.savez(made, **{f"output_{number}": output for number, output in enumerate(outputs)})
    return {}


def main() -> None:
    """What the child process does."""
    confined(_run)


if __name__ == "__main__":
    main()
