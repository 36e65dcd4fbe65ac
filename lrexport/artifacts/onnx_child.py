"""The side of a child process that opens an ONNX file of somebody else's: limits, parser, checker, one line of JSON.

    python -m lrexport.artifacts.onnx_child FILE BYTES:SECONDS:PARENT

BYTES of memory and SECONDS of processor time are what opening it may take; it ends with the process PARENT. Started by
:mod:`lrexport.artifacts.onnx_files`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lrexport.artifacts.lfs import is_lfs_pointer
from lrexport.artifacts.onnx_expansion import check_expansion
from lrexport.artifacts.onnx_repair import allowances, repair
from lrexport.confinement import confine, die_with_parent
from lrexport.text import first_line

if TYPE_CHECKING:
    import onnx

_SHOWN = 3
_MOST_CHARACTERS = 300  # of a reason
_TOO_MUCH = "needs far more memory than its size explains"
_OUT_OF_MEMORY = ("bad_alloc", "Arena alloc failed")  # the words of C++ and of protobuf
# Names of the files of external data, in what every child answers.
EXTERNAL = "external"
# What was repaired in the model before it was looked into, in words; also in what every child answers.
REPAIRS = "repairs"


def answer(work: Callable[[onnx.ModelProto, list[str]], dict[str, Any]]) -> None:
    """Print what ``work`` makes of the checked model and its files of external data, or {"error": …}.

    A model that the checker refuses though runtimes run it is repaired in memory first.
    """
    path, (memory, seconds, parent) = sys.argv[1], map(int, sys.argv[2].split(":"))
    die_with_parent(parent)
    try:
        import onnx  # noqa: F401 - before the limits: it is not the file's fault what importing it takes

        confine(memory, seconds)
        os.chdir(os.path.dirname(path))
        result = examine(os.path.basename(path), work)
    except MemoryError:
        result = {"error": _TOO_MUCH}
    except Exception as error:  # damage meets onnx anywhere
        reason = first_line(error).strip()[:_MOST_CHARACTERS]
        result = {"error": _TOO_MUCH if any(word in reason for word in _OUT_OF_MEMORY) else reason}
    print(json.dumps(result))


def examine(name: str, work: Callable[[onnx.ModelProto, list[str]], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` makes of the model in file ``name`` of the current folder, after its check; damage raises anything."""
    import onnx

    model = onnx.load(name, load_external_data=False)
    check_expansion(model)
    files = _external_files(model)
    repairs = _checked(model, name, files)
    return {**work(model, files), REPAIRS: repairs}


def _checked(model: onnx.ModelProto, name: str, files: list[str]) -> list[str]:
    """What had to be repaired in ``model``, in words. Raises the checker's error where that does not suffice."""
    import onnx

    try:
        # By its path, so that the checker looks beside the file for links too; it takes no path that is not UTF-8.
        onnx.checker.check_model(name if files or _is_unicode(name) else model)
        return []
    except onnx.checker.ValidationError as refusal:
        repairs = repair(model)
        with allowances(model) as more:
            repairs += more
            if not repairs:
                raise
            try:
                onnx.checker.check_model(model)
            except onnx.checker.ValidationError:
                raise refusal from None
        return repairs


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
        if not all(isinstance(text, str) for text in (*entries, *entries.values())):
            raise ValueError(f"external data of {tensor.name!r} is described in bytes that are not UTF-8")
        place = entries.get("location", "").replace("\\", "/")
        if os.path.isabs(place) or ".." in place.split("/"):
            outside.append(entries["location"])
            continue
        if os.path.realpath(os.path.dirname(place) or os.curdir) != os.path.normpath(
            os.path.join(home, os.path.dirname(place))
        ):
            outside.append(f"{place}, through a symbolic link")
            continue
        if is_lfs_pointer(place):
            absent.append(f"{place} is a Git LFS pointer, git lfs pull fetches what it points to")
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
