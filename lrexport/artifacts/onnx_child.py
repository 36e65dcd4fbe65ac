"""The child process that opens a foreign ONNX file: limits, parser, checker, and one line of JSON as the answer.

    python -m lrexport.artifacts.onnx_child FILE BYTES:SECONDS

It may use BYTES of memory and SECONDS of CPU time. :mod:`lrexport.artifacts.onnx_files` starts it.
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
from lrexport.confinement import confine
from lrexport.text import first_line

if TYPE_CHECKING:
    import onnx

_SHOWN = 3
_MOST_CHARACTERS = 300  # of an error's text
_TOO_MUCH = "needs far more memory than its size explains"
_OUT_OF_MEMORY = ("bad_alloc", "Arena alloc failed")  # errors of C++ and of protobuf
# Keys in every answer: the names of the files of external data, and the repairs that the model needed, as text.
EXTERNAL = "external"
REPAIRS = "repairs"


def answer(work: Callable[[onnx.ModelProto, list[str]], dict[str, Any]]) -> None:
    """Print the result of ``work`` for the checked model and its files of external data, or {"error": …}.

    A model that the checker refuses although runtimes accept it is first repaired in memory.
    """
    confined(lambda name: examine(name, work))


def confined(work: Callable[[str], dict[str, Any]]) -> None:
    """Print the result of ``work`` for the name of the file in its folder, or {"error": …}, under the limits."""
    path, (memory, seconds) = sys.argv[1], map(int, sys.argv[2].split(":"))
    try:
        import onnx  # noqa: F401 - before the limits, which are for the file and not for the import

        confine(memory, seconds)
        os.chdir(os.path.dirname(path))
        result = work(os.path.basename(path))
    except MemoryError:
        result = {"error": _TOO_MUCH}
    except Exception as error:  # on damaged files onnx raises anything
        reason = first_line(error).strip()[:_MOST_CHARACTERS]
        result = {"error": _TOO_MUCH if any(word in reason for word in _OUT_OF_MEMORY) else reason}
    print(json.dumps(result))


def examine(name: str, work: Callable[[onnx.ModelProto, list[str]], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``work`` for the checked model in file ``name`` of the current folder. Damaged files raise anything."""
    import onnx

    model = onnx.load(name, load_external_data=False)
    check_expansion(model)
    files = _external_files(model)
    repairs = _checked(model, name, files)
    return {**work(model, files), REPAIRS: repairs}


def _checked(model: onnx.ModelProto, name: str, files: list[str]) -> list[str]:
    """Check ``model``, with repairs if necessary, which are returned as text. Raises the checker's error if they fail."""
    import onnx

    try:
        # Given a path, the checker also detects links in external data; it accepts only UTF-8 paths.
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
    """Names of the files in the current folder with the model's tensors. Raises ValueError for places outside of it."""
    outside: list[str] = []
    absent: list[str] = []
    files: dict[str, None] = {}
    home = os.path.realpath(os.curdir)
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        if not all(isinstance(text, str) for text in (*entries, *entries.values())):
            raise ValueError(f"the description of external data of {tensor.name!r} is not UTF-8")
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
            absent.append(f"{place} is a Git LFS pointer: fetch the file with git lfs pull")
            continue
        size = os.path.getsize(place) if os.path.isfile(place) else 0
        offset, length = (entries.get(key, "0") for key in ("offset", "length"))
        if not (offset.isdecimal() and length.isdecimal() and int(offset) + int(length) <= size):
            absent.append(f"{tensor.name} at {offset} + {length} of {size} bytes in {place}")
        files[place] = None
    if outside:
        raise ValueError("external data outside of the file's folder: " + ", ".join(outside[:_SHOWN]))
    if absent:
        raise ValueError("missing external data: " + ", ".join(absent[:_SHOWN]))
    return list(files)


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors of a message: in initializers, attributes of nodes, inner graphs and functions."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)


def main() -> None:
    """Answer with the files of external data alone."""
    answer(lambda model, files: {EXTERNAL: files})


if __name__ == "__main__":
    main()
