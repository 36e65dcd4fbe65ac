"""Open foreign ONNX files: a child process with limits parses and checks them first."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from lrexport.artifacts import onnx_child
from lrexport.artifacts.children import run_child
from lrexport.artifacts.lfs import refuse_lfs_pointer
from lrexport.artifacts.plain_files import check_input
from lrexport.errors import InputError
from lrexport.units import format_bytes

# Importing onnx and checking a graph of 100,000 nodes take 2 s of CPU time, counting its MACs 10 s. Such a graph has at
# least 5 MB without weights.
_LEAST_SECONDS = 8
_BYTES_A_SECOND = 500_000
_MOST_SECONDS = 300
# Wall-clock time over CPU time, because other processes may use the CPU too.
_WALL_CLOCK = 10
# In memory a graph of small nodes takes up to 70 times its file size, weights 3 times.
_LEAST_BYTES = 1 << 30
_BYTES_A_BYTE = 16
# To run a graph once: a detector on a large picture takes seconds and a gigabyte.
_MORE_SECONDS = 60
_LEAST_BYTES_OF_A_RUN = 4 << 30
_OUT_OF_TIME = getattr(signal, "SIGXCPU", signal.SIGTERM)
_PROTOBUF_LIMIT = 2 << 30


def external_files(path: Path) -> list[Path]:
    """Check the model ``path``: the files next to it with its external data. Raises InputError."""
    return [path.parent / name for name in ask_child("lrexport.artifacts.onnx_child", path)[onnx_child.EXTERNAL]]


def ask_child(module: str, path: Path, *arguments: str, runs: bool = False) -> dict[str, Any]:
    """The answer of ``main`` of ``module``, built on :mod:`lrexport.artifacts.onnx_child`, about the file ``path``.

    ``arguments`` follow those of every child. Limits of memory and CPU time depend on the file's size; a child that ``runs``
    the graph has more of both. The child ends with this process. Raises InputError if the file is missing or empty, or if
    the child refuses it, crashes or does not end.
    """
    check_input(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise InputError(f"empty file: {path}", "Writing it was probably interrupted: export it again.")
    refuse_lfs_pointer(path)
    if size > _PROTOBUF_LIMIT:
        raise InputError(
            f"{path} has {format_bytes(size)}; expected at most 2 GiB, the limit of a single ONNX file",
            "Save it with external data: onnx.save(model, path, save_as_external_data=True).",
        )
    seconds = min(_MOST_SECONDS, _LEAST_SECONDS + size // _BYTES_A_SECOND)
    least = _LEAST_BYTES
    if runs:
        seconds, least = seconds + _MORE_SECONDS, _LEAST_BYTES_OF_A_RUN
    limits = f"{least + _BYTES_A_BYTE * size}:{seconds}"
    try:
        status, out = run_child(module, [str(path.absolute()), limits, *arguments], _WALL_CLOCK * seconds)
    except TimeoutError as error:
        raise _endless(path, _WALL_CLOCK * seconds, runs) from error
    if status == -_OUT_OF_TIME:
        raise _endless(path, seconds, runs)
    lines = out.strip().splitlines()
    if not lines:
        raise InputError(f"invalid ONNX file {path}: the parser crashed (exit {status})")
    result: dict[str, Any] = json.loads(lines[-1])
    if "error" in result:
        other = _other_kind(path)
        hint = f"It seems to be {other}; expected an ONNX graph." if other else None
        raise InputError(f"invalid ONNX file {path}: {result['error']}", hint)
    return result


def _endless(path: Path, seconds: int, runs: bool) -> InputError:
    if runs:
        return InputError(
            f"cannot use {path}: running it once takes more than {seconds} s of CPU time",
            "A loop in it may never end. Give smaller sizes of its inputs if it leaves them free.",
        )
    return InputError(
        f"cannot read {path}: checking it takes more than {seconds} s, too long for {format_bytes(path.stat().st_size)}",
        "Simplify the graph with onnxsim, or export it again.",
    )


def _other_kind(path: Path) -> str | None:
    """The kind of a file that is not ONNX, if its first bytes show it."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "weights that torch saved"
    if head[8:9] == b"{":
        return "weights in safetensors"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    is_text = head.isascii() and head.decode("ascii").translate(dict.fromkeys(b"\t\n\r")).isprintable()
    return "text" if is_text else None
