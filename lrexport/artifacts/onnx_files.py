"""Open an ONNX file that somebody else made: its parser runs in a child process first, with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lrexport.artifacts import onnx_child
from lrexport.artifacts.children import run_child
from lrexport.artifacts.lfs import refuse_lfs_pointer
from lrexport.artifacts.plain_files import check_input
from lrexport.errors import InputError
from lrexport.units import format_bytes

# Importing onnx and checking a graph of 100,000 nodes take 2 s of a processor, counting its MACs takes 10 s; such a graph
# has 5 MB or more without its weights.
_LEAST_SECONDS = 8
_BYTES_A_SECOND = 500_000
_MOST_SECONDS = 300
# Others may use the processor at the same time.
_WALL_CLOCK = 10
# A graph of small nodes takes up to 70 times its file in memory, weights 3 times.
_LEAST_BYTES = 1 << 30
_BYTES_A_BYTE = 16
_OUT_OF_TIME = getattr(signal, "SIGXCPU", signal.SIGTERM)
_PROTOBUF_LIMIT = 2 << 30
# The child starts in the folder that holds this package: it finds the package, and nothing in the user's current folder
# stands before Python's own modules.
_HOME = Path(__file__).parents[2]


def external_files(path: Path) -> list[Path]:
    """The files beside ``path`` that hold tensors of it, which is checked first. Raises InputError."""
    return [path.parent / name for name in ask_child("lrexport.artifacts.onnx_child", path)[onnx_child.EXTERNAL]]


def ask_child(module: str, path: Path, *arguments: str) -> dict[str, Any]:
    """What ``python -m module`` answers about ``path``, built on :mod:`lrexport.artifacts.onnx_child`.

    ``arguments`` follow those of every child. Memory and processor time are limited by the file's size; the child ends
    with this process. Raises InputError where the file is absent or empty, or where the child refuses it, crashes or does
    not end.
    """
    check_input(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise InputError(f"empty file: {path}", "It was probably not written to the end; export it again.")
    refuse_lfs_pointer(path)
    if size > _PROTOBUF_LIMIT:
        raise InputError(
            f"{path} has {format_bytes(size)}; a single ONNX file has at most 2 GiB",
            "Save it with external data: onnx.save(model, path, save_as_external_data=True).",
        )
    seconds = min(_MOST_SECONDS, _LEAST_SECONDS + size // _BYTES_A_SECOND)
    limits = f"{_LEAST_BYTES + _BYTES_A_BYTE * size}:{seconds}:{os.getpid()}"
    command = [sys.executable, "-m", module, str(path.absolute()), limits, *arguments]
    try:
        status, out = run_child(command, _WALL_CLOCK * seconds, _HOME)
    except subprocess.TimeoutExpired as error:
        raise _endless(path, _WALL_CLOCK * seconds) from error
    if status == -_OUT_OF_TIME:
        raise _endless(path, seconds)
    lines = out.strip().splitlines()
    if not lines:
        raise InputError(f"{path} is no readable ONNX file: the parser crashed (exit {status})")
    result: dict[str, Any] = json.loads(lines[-1])
    if "error" in result:
        other = _seems(path)
        hint = f"It seems to be {other}; a graph was wanted." if other else None
        raise InputError(f"{path} is no valid ONNX file: {result['error']}", hint)
    return result


def _endless(path: Path, seconds: int) -> InputError:
    return InputError(
        f"cannot read {path}: its check takes more than {seconds} s, for {format_bytes(path.stat().st_size)}",
        "No ordinary graph of this size does. Simplify it with onnxsim, or export it again.",
    )


def _seems(path: Path) -> str | None:
    """What a file is that is no ONNX, where its beginning tells."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "weights that torch saved"
    if head[8:9] == b"{":
        return "weights in safetensors"
    is_text = head.isascii() and head.decode("ascii").translate(dict.fromkeys(b"\t\n\r")).isprintable()
    return "text" if is_text else None
