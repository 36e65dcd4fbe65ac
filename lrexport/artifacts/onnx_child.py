"""The side of a child process that opens an ONNX file of somebody else's: limits, parser, checker, one line of JSON.

    python -m lrexport.artifacts.onnx_child FILE BYTES

BYTES of address space are what it may take. Started by :mod:`lrexport.artifacts.onnx_files`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_SHOWN = 3
# Names of the files of external data, in what every child answers.
EXTERNAL = "external"


def answer(work: Callable[[onnx.ModelProto, list[str]], dict[str, Any]]) -> None:
    """Print what ``work`` makes of the checked model and its files of external data, or {"error": …}."""
    path, most_bytes = sys.argv[1], int(sys.argv[2])
    _limit(most_bytes)
    try:
        import onnx

        os.chdir(os.path.dirname(path))
        name = os.path.basename(path)
        model = onnx.load(name, load_external_data=False)
        files = _external_files(model)
        # By its path, so that the checker looks beside the file for links too; it takes no path that is not UTF-8.
        onnx.checker.check_model(name if files or _is_unicode(name) else model)
        found = work(model, files)
    except MemoryError:
        found = {"error": "needs far more memory than its size explains"}
    except Exception as error:  # damage meets onnx anywhere
        found = {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:300]}
    print(json.dumps(found))


def _limit(most_bytes: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    except (ImportError, ValueError, OSError):  # no such limits on this system
        pass


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _external_files(model: onnx.ModelProto) -> list[str]:
    """Names of the files in the current folder that hold tensors. Raises ValueError for places that must not be named."""
    outside: list[str] = []
    absent: list[str] = []
    files: dict[str, None] = {}
    home = os.path.realpath(os.curdir)
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        place = entries.get("location", "").replace("\\", "/")
        if os.path.isabs(place) or ".." in place.split("/"):
            outside.append(entries["location"])
            continue
        if os.path.realpath(os.path.dirname(place) or os.curdir) != os.path.normpath(
            os.path.join(home, os.path.dirname(place))
        ):
            outside.append(f"{place}, through a symbolic link")
            continue
        size = os.path.getsize(place) if os.path.isfile(place) else 0
        offset, length = (entries.get(key, "0") for key in ("offset", "length"))
        if not (offset.isdecimal() and length.isdecimal() and int(offset) + int(length) <= size):
            absent.append(f"{tensor.name} at {offset} + {length} of {size} bytes in {place}")
        files[place] = None
    if outside:
        raise ValueError("external data outside of the file's folder: " + ", ".join(outside[:_SHOWN]))
    if absent:
        raise ValueError("external data that is not there: " + ", ".join(absent[:_SHOWN]))
    return list(files)


def _tensors(message: Any) -> Iterator[Any]:
    """Wherever they are: initializers, attributes of nodes, graphs in attributes, functions."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)


if __name__ == "__main__":
    answer(lambda model, files: {EXTERNAL: files})
