"""Small ONNX graphs, made in a line, and what ONNX Runtime's profiler says about them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]


def value(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape | None],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A graph of float32 inputs and outputs."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    ins, outs = ([value(name, shape) for name, shape in items.items()] for items in (inputs, outputs))
    graph = helper.make_graph(list(nodes), "g", ins, outs, initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(8 + max(opset - 17, 0), 12), functions=functions)


def zeros(*shape: int, kind: str = "f4") -> np.ndarray:
    return np.zeros(shape, kind)


def profiled_macs(made: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int:
    """Of Conv, ConvTranspose, MatMul, Gemm and LSTM, from the shapes that ONNX Runtime met as it ran the graph as it is."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    return sum(_macs(event["args"]) for event in events if event["name"].endswith("_kernel_time"))


def _macs(event: Mapping[str, list[dict[str, list[int]]]]) -> int:
    given = [next(iter(shape.values())) for shape in event["input_type_shape"]]
    made = [next(iter(shape.values())) for shape in event["output_type_shape"]]
    if event["op_name"] == "Conv":
        return made[0][0] * prod(made[0][2:]) * prod(given[1])
    if event["op_name"] == "ConvTranspose":
        return given[0][0] * prod(given[0][2:]) * prod(given[1])
    if event["op_name"] in ("MatMul", "Gemm"):
        return prod(made[0]) * given[0][-1]
    if event["op_name"] == "LSTM":
        return prod(given[0][:2]) * given[2][0] * given[2][1] * (given[0][2] + given[2][2])
    return 0
