"""Weight files made by hand, byte by byte, honest or lying: safetensors, torch archives, torch's format before 1.6."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's format before 1.6


def safetensors_file(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def tensor_entry(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def pickled_int(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def pickled_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickled_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def pickled_weights(storage: int, size: int, stride: int = 1, view: bytes = b"") -> bytes:
    """A state dict of one float32 tensor (size,), as torch.save pickles it, with whatever sizes it is told to claim."""
    key = pickled_tuple(
        pickled_text("storage"),
        b"ctorch\nFloatStorage\n",
        pickled_text("0"),
        pickled_text("cpu"),
        pickled_int(storage),
        view,
    )
    what = (
        key,
        b"Q",
        pickled_int(0),
        pickled_tuple(pickled_int(size)),
        pickled_tuple(pickled_int(stride)),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    )
    return b"\x80\x02}" + pickled_text("0.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n" + pickled_tuple(*what) + b"Rs."


def write_archive(path: Path, pickled: bytes, values: bytes = bytes(16)) -> None:
    """A torch archive around ``pickled`` whose one storage has ``values``."""
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as honest:
        records = {name: honest.read(name) for name in honest.namelist()}
    with zipfile.ZipFile(path, "w") as lying:
        for name, content in records.items():
            last = name.rpartition("/")[2]
            lying.writestr(name, pickled if last == "data.pkl" else values if last == "0" else content)


def write_old_format(path: Path, pickled: bytes, count: int, values: bytes = bytes(16)) -> None:
    """torch's format before 1.6: five pickles, then each storage as its number of elements and its bytes."""
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, PROTOCOL, {"little_endian": True})]
    parts += [pickled, pickle.dumps(["0"], protocol=2), struct.pack("<q", count), values]
    path.write_bytes(b"".join(parts))
