"""ONNX operator sets that a graph can be written in: torch's exporter writes recent ones, onnx converts to older ones."""

from __future__ import annotations

import onnx

from lrexport.artifacts.onnx_graphs import opset_of as opset_of
from lrexport.config.export_options import FIRST_OPSET as FIRST_OPSET  # asked for less, torch's exporter writes this one
from lrexport.errors import InputError, UsageError
from lrexport.formats.graph_sessions import check_model
from lrexport.formats.older_opset import written_in

# The oldest opset that ONNX Runtime promises to run.
OLDEST_OPSET = 7
# Before IR version 4 every weight had to be an input as well.
_OLDEST_IR = 4


def check_opset(opset: int) -> None:
    """Raise UsageError for an opset that cannot be written or run here."""
    last = last_opset()
    if not OLDEST_OPSET <= opset <= last:
        side = (
            "ONNX Runtime does not run older ones"
            if opset < OLDEST_OPSET
            else "the installed ONNX Runtime does not run newer ones"
        )
        raise UsageError(
            f"invalid opset {opset}: expected {OLDEST_OPSET} to {last}; {side}",
            f"Opsets from {FIRST_OPSET} work for every network, older ones for most.",
        )


def last_opset() -> int:
    """The newest opset that the installed ONNX Runtime loads, found by trying."""
    import onnxruntime

    helper = onnx.helper
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    for opset in range(onnx.defs.onnx_opset_version(), FIRST_OPSET, -1):
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    return FIRST_OPSET


def in_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph in an older opset, with the oldest IR version for it; ``model`` itself is not changed.

    Raises UsageError, with the opsets that work, if onnx cannot convert it. Outputs are not compared.
    """
    if opset == opset_of(model):
        return model
    try:
        return _converted(model, opset)
    except InputError as error:
        oldest = opset_of(model)
        while oldest - 1 > opset and _converts(model, oldest - 1):
            oldest -= 1
        raise UsageError(
            f"this network cannot be written in opset {opset}: {error.message}",
            f"Opsets {oldest} to {last_opset()} work: choose one with --opset.",
        ) from error


def _converts(model: onnx.ModelProto, opset: int) -> bool:
    try:
        _converted(model, opset)
    except InputError:
        return False
    return True


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert by the standard's schemas or, if these do not suffice, by onnx's converter, and check. Raises InputError."""
    try:
        return _checked(written_in(model, opset_of(model), opset))
    except InputError as error:
        try:
            return _checked(onnx.version_converter.convert_version(model, opset))
        except Exception:  # its C++ raises arbitrary errors, less informative than those of the schemas
            raise error from None


def _checked(made: onnx.ModelProto) -> onnx.ModelProto:
    made.ir_version = max(_OLDEST_IR, onnx.helper.find_min_ir_version_for(list(made.opset_import)))
    check_model(made)
    return made
