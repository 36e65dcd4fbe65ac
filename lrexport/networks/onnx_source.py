"""Networks of .onnx files: read once in a process, copied wherever one is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.artifacts import files
from lrexport.artifacts.onnx_files import external_files
from lrexport.errors import InputError, LrexportError
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.reading import read_network
from lrexport.preprocessing import METADATA_KEY, Preprocessing
from lrexport.signature import Signature
from lrexport.torch_tools.copying import copy_network, with_same_weights
from lrexport.torch_tools.memory import give_back

_MOST = 2  # files whose networks are kept: that of a run, and its teacher
_READ: dict[tuple[str, Signature | None], OnnxNetwork] = {}


def read_onnx(path: str | Path, inputs: Signature | Mapping[str, Any] | None = None) -> OnnxNetwork:
    """The network of an .onnx file as a torch module: its convolutions and products with constant weights are layers.

    ``inputs`` gives sizes that the file leaves free, by name and without the batch, as in {"image": (3, 480, 640)}. The
    result can be compressed, trained where gradients reach, and written by :func:`lrexport.export_onnx` into the same
    graph. The file is read under limits, and nothing in it is executed as code. Raises InputError for a file that is
    damaged, or that ONNX Runtime does not run; UsageError for sizes that are missing or do not fit.
    """
    files.check_readable(Path(path))
    return copy_network(read_network(Path(path), None if inputs is None else Signature.of(inputs)))


def network_of(path: Path, inputs: Signature | None) -> OnnxNetwork:
    """:func:`read_onnx`, once for a content and its sizes; the result is not to be changed."""
    files.check_readable(path)
    key = (_content(path).digest, inputs)
    if key not in _READ:
        network = read_network(path, inputs)
        if _content(path).digest != key[0]:
            raise _changed(path)
        give_back()
        others = [each for each in _READ if each[0] != key[0]][-_MOST + 1 :]
        kept = {each: _READ[each] for each in others}
        _READ.clear()
        _READ.update({**kept, key: network, (key[0], network.signature): network})
    return _READ[key]


def copy_of(path: Path, inputs: Signature | None) -> OnnxNetwork:
    """A new network of a file."""
    return copy_network(network_of(path, inputs))


def untrained_of(path: Path, inputs: Signature | None) -> OnnxNetwork:
    """A new network of a file, whose weights take no memory and are not to be changed."""
    return with_same_weights(network_of(path, inputs))


@dataclass(frozen=True)
class _Content:
    """What a file had when it was read: ``stamps`` of it and of the files beside it that hold its weights, and a digest."""

    stamps: tuple[tuple[Path, int, int, int], ...]
    digest: str

    @property
    def has_external(self) -> bool:
        return len(self.stamps) > 1


_CONTENTS: dict[Path, _Content] = {}


def _content(path: Path) -> _Content:
    """The content of a file, hashed again only if the file or one that belongs to it is another or was written."""
    known = _CONTENTS.get(path.absolute())
    if known is not None and known.stamps == _stamps([each for each, *_ in known.stamps]):
        return known
    parts = [each.absolute() for each in (path, *external_files(path))]
    stamps, digest = _stamps(parts), hashlib.sha256()
    for each in parts:
        digest.update(files.sha256(each).encode())
    if stamps != _stamps(parts):
        raise _changed(path)
    _CONTENTS[path.absolute()] = made = _Content(stamps, digest.hexdigest())
    return made


def _stamps(parts: Sequence[Path]) -> tuple[tuple[Path, int, int, int], ...]:
    """Which file each path leads to, its size, and when it was written."""
    try:
        return tuple((each, (stat := each.stat()).st_ino, stat.st_size, stat.st_mtime_ns) for each in parts)
    except OSError:
        return ()


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read", "Repeat the command when nothing writes the file.")


def content_of(path: Path, network: OnnxNetwork) -> bytes:
    """The content of a run's copy of the file: the file itself, or one file with the weights that it keeps beside it."""
    known = _content(path)
    if known.has_external:
        return network.file.whole().SerializeToString()
    content = files.read_bytes(path)
    if hashlib.sha256(hashlib.sha256(content).hexdigest().encode()).hexdigest() != known.digest:
        raise _changed(path)
    return content


def file_shapes(network: OnnxNetwork) -> dict[str, tuple[int, ...]]:
    """The sizes of the file's inputs for one run, of one sample where the batch is free, by their names in the file."""
    return {each.name: each.spec.shape if each.is_whole else (each.batch or 1, *each.spec.shape) for each in network.inputs}


def stated_preprocessing(network: OnnxNetwork) -> dict[str, Any]:
    """What the file's metadata says of pictures, if lrexport wrote it; empty otherwise.

    The file may be anybody's: a value that makes no sense counts as nothing.
    """
    texts = {item.key: item.value for item in network.source.metadata_props}
    try:
        value = json.loads(texts.get(METADATA_KEY, "{}"))
        if not isinstance(value, dict) or value.pop("in_graph", False):
            return {}
        fields: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
        return Preprocessing(**fields).to_plain() if fields else {}
    except (ValueError, TypeError, RecursionError, LrexportError):
        return {}
