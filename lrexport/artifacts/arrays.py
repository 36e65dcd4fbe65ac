"""Read and write arrays by name in .npz files; foreign files are read without pickle and with bounded memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.errors import InputError
from lrexport.text import first_line
from lrexport.units import format_bytes

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

MOST_BYTES = 2 << 30
_MOST_ARRAYS = 1000
_ENDING = ".npy"
_KINDS = "biufU"  # booleans, integers, floats, text
_HINT = "Write it with numpy.savez(path, NAME=array, …), one array for each input, without object arrays."


def read_arrays(path: Path, most_bytes: int | None = None, hint: str = _HINT) -> Arrays:
    """The arrays of a .npz by name, in this machine's byte order.

    Raises InputError if the file is missing or damaged, has objects or other files, or unpacks to over ``most_bytes``, by
    default MOST_BYTES.
    """
    if not path.is_file():
        raise InputError(f"cannot read {path}: no such file", hint)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, MOST_BYTES if most_bytes is None else most_bytes)
    except InputError:
        raise
    except Exception as error:  # on damaged files zipfile, zlib and numpy raise anything: TokenError, SyntaxError, …
        raise InputError(f"invalid .npz file {path}: {first_line(error)}", hint) from error


def _read(path: Path, archive: zipfile.ZipFile, most_bytes: int) -> Arrays:
    entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > most_bytes or len(entries) > _MOST_ARRAYS:
        raise InputError(
            f"{path} unpacks to {len(entries)} arrays with {format_bytes(size)}; "
            f"expected at most {_MOST_ARRAYS} arrays and {format_bytes(most_bytes)}"
        )
    arrays: Arrays = {}
    for entry in entries:
        name = entry.filename.removesuffix(_ENDING)
        if not entry.filename.endswith(_ENDING) or name in arrays:
            raise ValueError(f"unexpected entry {entry.filename!r}: expected distinct names that end in {_ENDING}")
        arrays[name] = _array(archive, entry, name)
    if not arrays:
        raise ValueError("it contains no arrays")
    return arrays


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Any:
    """One array; reads at most one byte more than its header announces. Raises ValueError if the sizes differ."""
    import numpy as np

    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read_header is None:
            raise ValueError(f"array {name!r} has format version {version}; expected 1.0 or 2.0")
        shape, is_fortran, dtype = read_header(stream)
        if dtype.kind not in _KINDS:
            raise ValueError(f"array {name!r} has type {dtype}; expected numbers, booleans or text")
        size = prod(shape) * dtype.itemsize
        content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"array {name!r} has at least {len(content)} bytes; its header says {size}")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def npz_bytes(arrays: Mapping[str, Any], compress: bool = False) -> bytes:
    """The content of a .npz file with these arrays."""
    import numpy as np

    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", method) as archive:  # for numpy.savez an array could not be called "file"
        for name, array in arrays.items():
            with archive.open(f"{name}{_ENDING}", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    return stream.getvalue()
