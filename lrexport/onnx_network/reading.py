"""Read an ONNX file as a torch network, and compare both before anything is built on it."""

from __future__ import annotations

from pathlib import Path

import onnx

from lrexport.artifacts import onnx_child
from lrexport.artifacts.onnx_files import ask_child
from lrexport.artifacts.onnx_repair import repair
from lrexport.errors import InputError
from lrexport.onnx_network.agreement import agreeing
from lrexport.onnx_network.inputs import inputs_of
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.source import SourceModel
from lrexport.signature import Signature
from lrexport.text import first_line


def read_signature(path: Path, inputs: Signature | None = None) -> Signature:
    """What a file's network takes. Raises as :func:`read_network`, without reading weights."""
    model = _load(path, with_data=False)
    return Signature(tuple(each.spec for each in inputs_of(model, inputs, str(path))))


def read_network(path: Path, inputs: Signature | None = None) -> OnnxNetwork:
    """The network of the ONNX file at ``path``, in eval mode, computing as ONNX Runtime does.

    A child process with limits of memory and time checks the file first. ``inputs`` gives sizes that the file leaves free,
    and ranges of values. One random input is run in ONNX Runtime too: nodes whose results differ run there from then
    on. Its weights are not to be changed, only those of copies. Raises InputError for a file that is damaged, or that ONNX
    Runtime does not run, and UsageError for sizes that are missing or do not fit.
    """
    source = SourceModel(_load(path))
    network = OnnxNetwork(source, inputs_of(source.light, inputs, str(path))).eval()
    return agreeing(network, path)


def _load(path: Path, with_data: bool = True) -> onnx.ModelProto:
    """The model, repaired in memory if onnx's checker would refuse it although runtimes accept it."""
    checked = ask_child(onnx_child.__name__, path)
    try:
        model = onnx.load(str(path), load_external_data=with_data)
    except Exception as error:  # the parser raises many types; a child process has read the file before
        raise InputError(f"cannot read {path}: {first_line(error)}") from error
    if checked[onnx_child.REPAIRS]:
        repair(model)
    return model
