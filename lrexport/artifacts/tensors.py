"""Weights: safetensors of ours and of others, and foreign PyTorch checkpoints without ever unpickling code."""

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

# The format's own limit (safetensors README, "Format"): a header is at most 100 MB.
_MAX_HEADER_BYTES = 100_000_000
# Of a header within it: json needs 3 GB and a minute for 50 million numbers. A tensor has about eight commas.
_MAX_HEADER_ITEMS = 2_000_000
_MAX_AXES = 64  # torch's own limit for most operations
_MOST_IN_AN_AXIS = 2**63 - 1  # likewise
_GATHER = (
    "Gather the weights into one file first: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE), or "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) where they are saved."
)
# What a state dict of plain tensors needs to be unpickled, in torch's format from before 1.6.
_PLAIN_GLOBALS = re.compile(r"torch\._utils\._rebuild_\w+|torch\.\w*Storage|collections\.OrderedDict|_codecs\.encode")


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    files.write_bytes(path, packed(tensors))


def packed(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors and text as the content of a safetensors file."""
    import safetensors.torch

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(plain, metadata)
    return content


def unpacked(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What :func:`packed` made of tensors and text. The content must be known to be ours, by its hash."""
    import safetensors.torch

    (length,) = struct.unpack("<Q", content[:8])
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return safetensors.torch.load(content), metadata


def load(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file that holds one state dict, as lrexport's own do; of others the outermost. Raises as below."""
    tensors = next(iter(load_all(path).values()))
    hollow = [name for name, value in tensors.items() if not has_plain_values(value)]
    if hollow:
        raise without_plain_values(path, hollow)
    return tensors


def without_plain_values(path: Path, names: Sequence[str]) -> InputError:
    """For tensors that are sparse, quantised, spread over devices or shapes alone."""
    return InputError(f"{path} holds tensors without plain values: {', '.join(names[:10])}", "Save them dense, on the CPU.")


def load_all(path: Path) -> StateDicts:
    """Every state dict in a safetensors file or a PyTorch checkpoint, by its place there: see :func:`state_dicts_in`.

    The content decides which of the two it is, not the file's name. Raises InputError for an empty, truncated, malformed
    or unsafe file, and for one without tensors.
    """
    return state_dicts_in(path, _read(path))


def _read(path: Path) -> object:
    if path.is_dir() and (path / ".metadata").exists():
        raise InputError(f"{path} holds a checkpoint in parts, one for each process", _GATHER)
    check_input(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise InputError(f"empty file: {path}", "It was probably not written to the end; make or fetch it again.")
    if head.startswith(b"PK\x03\x04"):
        return _load_zip_checkpoint(path)
    # A safetensors file can begin with this byte too, in its header's length; its header then begins with a brace.
    if head.startswith(b"\x80") and head[8:] != b"{":
        return _load_pickle(path)
    return _load_safetensors(path)


def _load_safetensors(path: Path) -> object:
    """Check the header against the file's size first, so that a lying header costs neither time nor memory."""
    import safetensors
    import safetensors.torch

    size = path.stat().st_size
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise InputError(f"{path} is truncated: {size} bytes, a safetensors file has at least 8")
        (length,) = struct.unpack("<Q", prefix)
        if length > _MAX_HEADER_BYTES:
            raise InputError(
                f"{path} is no safetensors file: its header claims {format_bytes(length)}, at most 100 MB is allowed",
                "Weights are read from safetensors or from a PyTorch state dict (.pt, .pth).",
            )
        if 8 + length > size:
            raise _truncated(path, 8 + length, size)
        raw = stream.read(length)
    if max(raw.count(b","), raw.count(b"["), raw.count(b"{")) > _MAX_HEADER_ITEMS:
        raise InputError(
            f"{path} is no safetensors file: its header has more than {_MAX_HEADER_ITEMS:,} entries",
            "A tensor has about eight. Make or fetch it again.",
        )
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        axes = {name: len(entry["shape"]) for name, entry in entries.items()}
        largest = max((int(size) for entry in entries.values() for size in entry["shape"]), default=0)
    except (ValueError, OverflowError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no safetensors file: malformed header ({error})") from error
    if largest > _MOST_IN_AN_AXIS:
        raise InputError(f"{path} is not a valid safetensors file: a shape in its header has {largest} in an axis")
    strange = next((name for name, count in axes.items() if count > _MAX_AXES), None)
    if strange is not None:
        raise InputError(
            f"{path} is no valid safetensors file: {strange} has {axes[strange]:,} axes, at most {_MAX_AXES} are read"
        )
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise _truncated(path, expected, size)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, RuntimeError, ValueError, OverflowError) as error:  # torch's for impossible shapes
        raise InputError(f"{path} is no valid safetensors file: {error}") from error


def _truncated(path: Path, expected: int, size: int) -> InputError:
    previous = sorted(path.parent.glob("checkpoint/*.safetensors"), key=lambda file: file.stat().st_mtime)
    others = [file for file in previous if file.resolve() != path.resolve()]
    hint = f"The last checkpoint beside it is {others[-1]}." if others else "Make or fetch it again."
    return InputError(f"{path} is truncated: {expected:,} bytes expected, {size:,} found", hint)


def _load_zip_checkpoint(path: Path) -> object:
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
        raise InputError(
            f"{path} is truncated or damaged: {path.stat().st_size:,} bytes, and the archive's directory cannot be read",
            "Make or fetch it again.",
        ) from error
    names = [entry.filename for entry in entries]
    if len({name.lower() for name in names}) < len(names):  # which of them torch would read is its reader's choice
        raise InputError(f"{path} has several records of one name", "torch.save writes each once; make or fetch it again.")
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise _not_a_state_dict(path, "a TorchScript archive, which carries code")
    if any(name.rsplit("/", 1)[-1] in ("serialized_exported_program.json", "archive_format") for name in names):
        raise _not_a_state_dict(path, "an exported program (.pt2), which carries a graph")
    # torch.save stores its records uncompressed, so an honest archive never unpacks to more than its own size.
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size:
        raise InputError(
            f"{path} claims to unpack to {format_bytes(unpacked)} from {format_bytes(path.stat().st_size)}",
            "torch.save never compresses; this archive was not written by it.",
        )
    return _load_pickle(path)


def _load_pickle(path: Path) -> object:
    """``torch.load(weights_only=True)``; there is no fallback to a full unpickling."""
    import pickle

    import torch

    check_cost(path)
    try:
        # A stream and no path: by a path's ending alone torch would choose safetensors.
        with open(path, "rb") as stream, reading_numbers_and_options():
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path) from error
    except Exception as error:  # damage meets torch's reader anywhere: IndexError, struct.error, AssertionError, …
        reason = first_line(error)
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint: {reason}", "Make or fetch it again.") from error


def _unsafe(path: Path) -> InputError:
    import torch

    try:
        if zipfile.is_zipfile(path):
            names = sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path)} - {*HARMLESS})
        else:
            names = _globals_in_old_format(path)
    except Exception:  # the lister itself gives up on some malformed pickles
        names = []
    if not names:
        return InputError(f"{path} is no PyTorch checkpoint that can be read without running code in it")
    listed = ", ".join(names[:10])
    if any(name.startswith("torch.distributed.") for name in names):
        return InputError(f"{path} holds tensors that are spread over several processes (it needs {listed})", _GATHER)
    if any("Module" in name or name.startswith(("torch.nn.", "__main__.", "torchvision.models.")) for name in names):
        return _not_a_state_dict(path, f"a whole pickled module (it needs {listed})")
    return InputError(
        f"{path} needs code to be unpickled: {listed}",
        "Where you trust it, load it yourself and save the weights alone: "
        'torch.save(model.state_dict(), "weights.pt") or safetensors.torch.save_file(model.state_dict(), ...).',
    )


def _globals_in_old_format(path: Path) -> list[str]:
    """Globals that the pickles of a checkpoint from before torch 1.6 ask for, without torch's own; nothing is run.

    The file is four pickles in a row (magic number, version, system, content); the weights come after them.
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
        f"{path} is {what}; only weights are read",
        'Save the weights alone: torch.save(model.state_dict(), "weights.pt").',
    )
