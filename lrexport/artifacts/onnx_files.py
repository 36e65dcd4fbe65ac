"""Open an ONNX file that somebody else made: its parser runs in a child process first, with limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import onnx_child
from lrexport.errors import InputError
from lrexport.units import format_bytes

if TYPE_CHECKING:
    import onnx

_CHECK_SECONDS = 120
_PROTOBUF_LIMIT = 2 << 30
# The child starts in the folder that holds this package: it finds the package, and nothing in the user's current folder
# stands before Python's own modules.
_HOME = Path(__file__).parents[2]


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in ``path``, without external data. Raises InputError where a parser fails, crashes or does not end."""
    check_onnx(path)
    import onnx

    return onnx.load(str(path), load_external_data=False)


def check_onnx(path: Path) -> None:
    """onnx's checker on ``path`` in a child process: a crash there is an error here. Raises InputError."""
    external_files(path)


def external_files(path: Path) -> list[Path]:
    """The files beside ``path`` that hold tensors of it, which is checked first. Raises InputError."""
    return [path.parent / name for name in ask_child("lrexport.artifacts.onnx_child", path)[onnx_child.EXTERNAL]]


def ask_child(module: str, path: Path, *arguments: str) -> dict[str, Any]:
    """What ``python -m module`` answers about ``path``, built on :mod:`lrexport.artifacts.onnx_child`.

    ``arguments`` follow those of every child.
    Memory is capped at the file's size with room for Python, numpy and the checker's own copies. Raises InputError where
    the file is absent or empty, or where the child refuses it, crashes or does not end.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise InputError(f"empty file: {path}", "It was probably not written to the end; export it again.")
    if size > _PROTOBUF_LIMIT:
        raise InputError(
            f"{path} has {format_bytes(size)}; a single ONNX file has at most 2 GiB",
            "Save it with external data: onnx.save(model, path, save_as_external_data=True).",
        )
    limit = 8 * size + (4 << 30)  # address space, not memory: importing numpy and onnx alone maps over 1 GiB
    command = [sys.executable, "-m", module, str(path.absolute()), str(limit), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, cwd=_HOME, timeout=_CHECK_SECONDS, text=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} is no readable ONNX file: its check did not end in {_CHECK_SECONDS} s") from error
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise InputError(f"{path} is no readable ONNX file: the parser crashed (exit {done.returncode})")
    found: dict[str, Any] = json.loads(lines[-1])
    if "error" in found:
        other = _seems(path)
        hint = f"It seems to be {other}; a graph was wanted." if other else None
        raise InputError(f"{path} is no valid ONNX file: {found['error']}", hint)
    return found


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
