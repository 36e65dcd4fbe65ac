"""Small ONNX files with layers of every kind, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_GENERATOR = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return (_GENERATOR.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str | None]],
    outputs: dict[str, Sequence[int | str | None]],
    tensors: dict[str, np.ndarray],
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


def two_convolutions(batch: int | str = "n") -> onnx.ModelProto:
    """Conv, Relu, Conv, mean, Gemm: 1 × 16 × 16 pictures of 3 channels to 10 scores."""
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["1"], "node_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b.weight"], ["3"], "node_b", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["3"], ["4"]),
        helper.make_node("Flatten", ["4"], ["5"]),
        helper.make_node("Gemm", ["5", "head.weight", "head.bias"], ["scores"], "node_head", transB=1),
    ]
    tensors = {"a.weight": weight(24, 3, 3, 3), "a.bias": weight(24), "b.weight": weight(32, 24, 3, 3)}
    tensors |= {"head.weight": weight(10, 32), "head.bias": weight(10)}
    return graph(nodes, {"x": [batch, 3, 16, 16]}, {"scores": [batch, 10]}, tensors)


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    onnx.save(model, str(path))
    return path


def outputs_of(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feed)
    return outputs
