"""Open an ONNX file that somebody else made: its parser runs in a child process first, with limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.errors import InputError
from lrexport.units import format_bytes

if TYPE_CHECKING:
    import onnx

_CHECK_SECONDS = 120
_PROTOBUF_LIMIT = 2 << 30
# Runs in the child. Memory is capped at the file's size with room for Python, numpy and the checker's own copies.
_CHECK = """
import json, os, sys
path, limit = sys.argv[1], int(sys.argv[2])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
except (ImportError, ValueError, OSError):
    pass
import onnx
def tensors(message):  # wherever they are: initializers, attributes of nodes, graphs in attributes, functions
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(item)
try:
    model = onnx.load(path, load_external_data=False)
    outside, absent = [], []
    for tensor in tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = entries.get("location", "").replace(chr(92), "/")
        if os.path.isabs(place) or ".." in place.split("/"):
            outside.append(entries["location"])
        elif entries:
            file = os.path.join(os.path.dirname(path), place)
            size = os.path.getsize(file) if os.path.isfile(file) else 0
            offset, length = (entries.get(key, "0") for key in ("offset", "length"))
            if not (offset.isdecimal() and length.isdecimal() and int(offset) + int(length) <= size):
                absent.append(tensor.name + " at " + offset + " + " + length + " of " + str(size) + " bytes in " + place)
    if outside:
        print(json.dumps({"error": "external data outside of the file's folder: " + ", ".join(outside[:3])}))
    elif absent:
        print(json.dumps({"error": "external data that is not there: " + ", ".join(absent[:3])}))
    else:
        onnx.checker.check_model(path)  # by its path, so that it looks beside the file for links too
        print(json.dumps({"ok": True}))
except MemoryError:
    print(json.dumps({"error": "needs far more memory than its size explains"}))
except Exception as error:
    print(json.dumps({"error": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}))
"""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in ``path``, without external data. Raises InputError where a parser fails, crashes or does not end."""
    check_onnx(path)
    import onnx

    return onnx.load(str(path), load_external_data=False)


def check_onnx(path: Path) -> None:
    """onnx's checker on ``path`` in a child process: a crash there is an error here. Raises InputError."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise InputError(f"empty file: {path}", "It was probably not written to the end; export it again.")
    if size > _PROTOBUF_LIMIT:
        raise InputError(f"{path} has {format_bytes(size)}; a single ONNX file has at most 2 GiB")
    limit = 8 * size + (4 << 30)  # address space, not memory: importing numpy and onnx alone maps over 1 GiB
    command = [sys.executable, "-c", _CHECK, str(path.absolute()), str(limit)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_CHECK_SECONDS, text=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path} is no readable ONNX file: its check did not end in {_CHECK_SECONDS} s") from error
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise InputError(f"{path} is no readable ONNX file: the parser crashed (exit {done.returncode})")
    verdict = json.loads(lines[-1])
    if "error" in verdict:
        raise InputError(f"{path} is no valid ONNX file: {verdict['error']}")
