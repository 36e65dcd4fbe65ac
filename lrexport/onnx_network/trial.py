"""What ONNX Runtime computes for every value of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from torch import Tensor

from lrexport.errors import InputError
from lrexport.onnx_network.operators.facts import from_array
from lrexport.text import first_line


def values_in_runtime(model: onnx.ModelProto, given: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Every value of the outermost graph by name, for inputs by name. Raises InputError if it cannot be run."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {item.name for item in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        declared = {item.name for item in session.get_inputs()}
        wanted = [item.name for item in session.get_outputs()]
        made = session.run(wanted, {name: value.numpy() for name, value in given.items() if name in declared})
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot show the values inside {path}: {first_line(error)}") from error
    values = {name: from_array(array) for name, array in zip(wanted, made, strict=True) if hasattr(array, "dtype")}
    return {name: value for name, value in values.items() if value is not None}
