"""Read and write weights: safetensors, and PyTorch checkpoints without ever unpickling code."""

from __future__ import annotations

import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.artifacts import files
from lrexport.artifacts.pickles import check_cost, check_directory
from lrexport.artifacts.plain_files import check_input
from lrexport.artifacts.state_dicts import (
    HARMLESS,
    StateDicts,
    has_plain_values,
    reading_numbers_and_options,
    state_dicts_in,
)
from lrexport.errors import InputError
from lrexport.text import first_line
from lrexport.units import format_bytes

if TYPE_CHECKING:
    import torch

# The limit of the format (safetensors README, "Format").
_MAX_HEADER_BYTES = 100_000_000
# A header of 100 MB can have 50 million numbers, for which json takes 3 GB and a minute. A tensor has about eight commas.
_MAX_HEADER_ITEMS = 2_000_000
_MAX_AXES = 64  # torch's limit for most operations
_MOST_IN_AN_AXIS = 2**63 - 1  # torch's limit
_GATHER = (
    "Gather the weights into one file first: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE), or "
    "save get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))."
)
_AGAIN = "Create or download it again."
# The globals that unpickling a state dict of plain tensors needs, in torch's format before 1.6.
_PLAIN_GLOBALS = re.compile(r"torch\._utils\._rebuild_\w+|torch\.\w*Storage|collections\.OrderedDict|_codecs\.encode")


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    files.write_bytes(path, pieces(tensors))


def pieces(tensors: Mapping[str, torch.Tensor]) -> list[bytes | memoryview]:
    """:func:`packed` in parts, which are the tensors' memory and no copies of it."""
    import torch

    plain = _plain(tensors)
    # safetensors has the order and the types of values; only sizes and places depend on how many there are.
    content = packed({name: torch.empty(1, dtype=value.dtype) for name, value in plain.items()})
    header, parts, end = _header(content), list[bytes | memoryview](), 0
    for name, entry in header.items():
        value = plain[name]
        start, end = end, end + value.nbytes
        entry |= {"shape": [*value.shape], "data_offsets": [start, end]}
        if value.numel():
            parts.append(value.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)), text, *parts]


def _header(content: bytes) -> dict[str, dict[str, object]]:
    """The header of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, dict[str, object]] = json.loads(content[8 : 8 + length])
    return header


def packed(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors and text as the content of a safetensors file."""
    import safetensors.torch

    content: bytes = safetensors.torch.save(_plain(tensors), metadata)
    return content


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, each with its own memory: the format has no shared values."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if place in seen else value
        seen.add(place)
    return plain


def unpacked(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the text that :func:`packed` packed. The caller must have verified the content by its hash."""
    import safetensors.torch

    metadata: dict[str, str] = {key: str(text) for key, text in _header(content).get("__metadata__", {}).items()}
    return safetensors.torch.load(content), metadata


def load(path: Path) -> dict[str, torch.Tensor]:
    """The outermost state dict of a file; lrexport's files have only one. Raises as :func:`load_all`."""
    tensors = next(iter(load_all(path).values()))
    not_plain = [name for name, value in tensors.items() if not has_plain_values(value)]
    if not_plain:
        raise without_plain_values(path, not_plain)
    return tensors


def without_plain_values(path: Path, names: Sequence[str]) -> InputError:
    """The error for tensors that are sparse, quantised, distributed or without values."""
    return InputError(f"tensors without plain values in {path}: {', '.join(names[:10])}", "Save them dense, on the CPU.")


def load_all(path: Path) -> StateDicts:
    """Every state dict in a safetensors file or a PyTorch checkpoint, by its place in the file (:func:`state_dicts_in`).

    The format is detected by content, not by the file's name. Raises InputError for an empty, truncated, malformed or
    unsafe file, and for one without tensors.
    """
    return state_dicts_in(path, _read(path))


def _read(path: Path) -> object:
    if path.is_dir() and (path / ".metadata").exists():
        raise InputError(f"{path} is a distributed checkpoint, with one part for each process", _GATHER)
    check_input(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise InputError(f"empty file: {path}", f"Writing it was probably interrupted. {_AGAIN}")
    if head.startswith(b"PK\x03\x04"):
        return _load_zip_checkpoint(path)
    # The length at the start of a safetensors file can contain this byte too, but then a brace follows.
    if head.startswith(b"\x80") and head[8:] != b"{":
        return _load_pickle(path)
    return _load_safetensors(path)


def _load_safetensors(path: Path) -> object:
    """Check the header against the file's size before loading, so a false header costs neither time nor memory."""
    import safetensors
    import safetensors.torch

    size = path.stat().st_size
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise InputError(f"{path} is truncated: it has {size} bytes; a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", prefix)
        if length > _MAX_HEADER_BYTES:
            raise InputError(
                f"invalid safetensors file {path}: its header claims {format_bytes(length)}; expected at most 100 MB",
                "Give weights as safetensors or as a PyTorch state dict (.pt, .pth).",
            )
        if 8 + length > size:
            raise _truncated(path, 8 + length, size)
        raw = stream.read(length)
    if max(raw.count(b","), raw.count(b"["), raw.count(b"{")) > _MAX_HEADER_ITEMS:
        raise InputError(
            f"invalid safetensors file {path}: its header has more than {_MAX_HEADER_ITEMS:,} entries",
            f"A tensor has about eight. {_AGAIN}",
        )
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        axes = {name: len(entry["shape"]) for name, entry in entries.items()}
        largest = max((int(size) for entry in entries.values() for size in entry["shape"]), default=0)
    except (ValueError, OverflowError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"invalid safetensors file {path}: malformed header ({error})") from error
    if largest > _MOST_IN_AN_AXIS:
        raise InputError(f"invalid safetensors file {path}: a shape in its header has {largest} in an axis")
    many_axes = next((name for name, count in axes.items() if count > _MAX_AXES), None)
    if many_axes is not None:
        raise InputError(
            f"invalid safetensors file {path}: {many_axes} has {axes[many_axes]:,} axes; expected at most {_MAX_AXES}"
        )
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise _truncated(path, expected, size)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, RuntimeError, ValueError, OverflowError) as error:  # torch's for impossible shapes
        raise InputError(f"invalid safetensors file {path}: {error}") from error


def _truncated(path: Path, expected: int, size: int) -> InputError:
    previous = sorted(path.parent.glob("checkpoint/*.safetensors"), key=lambda file: file.stat().st_mtime)
    others = [file for file in previous if file.resolve() != path.resolve()]
    hint = f"The last checkpoint next to it is {others[-1]}." if others else _AGAIN
    return InputError(f"{path} is truncated: it has {size:,} bytes; expected {expected:,}", hint)


def _load_zip_checkpoint(path: Path) -> object:
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
        raise InputError(
            f"{path} is truncated or damaged: it has {path.stat().st_size:,} bytes, but no readable archive directory",
            _AGAIN,
        ) from error
    names = [entry.filename for entry in entries]
    if len({name.lower() for name in names}) < len(names):  # it is undefined which of them torch would read
        raise InputError(f"{path} has several records of one name", f"torch.save writes each record once. {_AGAIN}")
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise _not_a_state_dict(path, "a TorchScript archive, which contains code")
    if any(name.rsplit("/", 1)[-1] in ("serialized_exported_program.json", "archive_format") for name in names):
        raise _not_a_state_dict(path, "an exported program (.pt2), which contains a graph")
    # torch.save does not compress its records, so its archives never unpack to more than their own size.
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size:
        raise InputError(
            f"{path} claims to unpack to {format_bytes(unpacked)} from {format_bytes(path.stat().st_size)}",
            "torch.save does not compress, so it did not write this archive. Save the weights with torch.save.",
        )
    return _load_pickle(path)


def _load_pickle(path: Path) -> object:
    """``torch.load(weights_only=True)``, never a full unpickling."""
    import pickle

    import torch

    check_cost(path)
    try:
        # A stream instead of a path, because torch chooses safetensors by a path's suffix.
        with open(path, "rb") as stream, reading_numbers_and_options():
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path) from error
    except Exception as error:  # on damaged files torch raises anything: IndexError, struct.error, AssertionError, …
        reason = first_line(error)
        raise InputError(f"cannot read {path} as a PyTorch checkpoint: {reason}", _AGAIN) from error


def _unsafe(path: Path) -> InputError:
    import torch

    try:
        if zipfile.is_zipfile(path):
            names = sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path)} - {*HARMLESS})
        else:
            names = _globals_in_old_format(path)
    except Exception:  # listing fails on some malformed pickles
        names = []
    if not names:
        return InputError(f"cannot read {path} as a PyTorch checkpoint without running code from it")
    listed = ", ".join(names[:10])
    if any(name.startswith("torch.distributed.") for name in names):
        return InputError(f"{path} has tensors that are distributed over several processes (it needs {listed})", _GATHER)
    if any("Module" in name or name.startswith(("torch.nn.", "__main__.", "torchvision.models.")) for name in names):
        return _not_a_state_dict(path, f"a whole pickled module (it needs {listed})")
    return InputError(
        f"{path} would run code when unpickled: {listed}",
        "If you trust it, load it yourself and save only the weights: "
        'torch.save(model.state_dict(), "weights.pt") or safetensors.torch.save_file(model.state_dict(), ...).',
    )


def _globals_in_old_format(path: Path) -> list[str]:
    """Globals in the pickles of a checkpoint before torch 1.6 that a plain state dict does not need; nothing is run.

    The file has four pickles in a row (magic number, version, system, content), then the weights.
    """
    names: set[str] = set()
    with open(path, "rb") as stream:
        try:
            for _ in range(4):
                for opcode, argument, _position in pickletools.genops(stream):
                    if opcode.name == "GLOBAL":
                        names.add(str(argument).replace(" ", "."))
        except ValueError:  # a plain pickle ends earlier
            pass
    return sorted(name for name in names if not _PLAIN_GLOBALS.fullmatch(name) and name not in HARMLESS)


def _not_a_state_dict(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} is {what}; expected only weights",
        'Save only the weights: torch.save(model.state_dict(), "weights.pt").',
    )
