"""One node run by its implementation and by ONNX Runtime, with the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from lrexport.onnx_network.operators.facts import NodeFacts, Operator, from_array
from lrexport.onnx_network.operators.table import operator_of

Array = np.ndarray[Any, Any]
NEWEST_OPSET = 26  # that ONNX Runtime runs


def facts(
    operator: str, inputs: Sequence[Array | None], opset: int, attributes: dict[str, Any], outputs: int, domain: str = ""
) -> NodeFacts:
    return NodeFacts(operator, opset, attributes, domain, len(inputs), outputs)


def implementation(
    operator: str, opset: int = 21, inputs: int = 1, outputs: int = 1, domain: str = "", **attributes: Any
) -> Operator | None:
    return operator_of(NodeFacts(operator, opset, attributes, domain, inputs, outputs))


def in_runtime(
    operator: str, inputs: Sequence[Array | None], opset: int, attributes: dict[str, Any], outputs: int, domain: str
) -> list[Array]:
    """What ONNX Runtime computes, without its optimisations, which may round otherwise."""
    names = ["" if value is None else f"x{place}" for place, value in enumerate(inputs)]
    made = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(operator, names, made, domain=domain, **attributes)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, inputs, strict=True)
        if value is not None
    ]
    graph = helper.make_graph([node], "one", declared, [onnx.ValueInfoProto(name=name) for name in made])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    return list(session.run(None, feed))


def in_torch(
    operator: str, inputs: Sequence[Array | None], opset: int, attributes: dict[str, Any], outputs: int, domain: str
) -> list[torch.Tensor]:
    made = operator_of(facts(operator, inputs, opset, attributes, outputs, domain))
    assert made is not None, f"{operator} has no implementation for {attributes} in opset {opset}"
    values = made([None if value is None else from_array(value) for value in inputs])
    return list(values[:outputs])


def agree(
    operator: str,
    inputs: Sequence[Array | None],
    opset: int,
    outputs: int = 1,
    domain: str = "",
    closeness: float = 1e-5,
    **attributes: Any,
) -> None:
    """Assert that values, shapes and types are the same; floats within ``closeness`` of the largest value."""
    expected = in_runtime(operator, inputs, opset, attributes, outputs, domain)
    made = in_torch(operator, inputs, opset, attributes, outputs, domain)
    assert len(made) == len(expected) == outputs
    for mine, other in zip(made, expected, strict=True):
        same(mine, np.asarray(other), closeness)


def same(mine: torch.Tensor, other: Array, closeness: float) -> None:
    wide = from_array(other)
    assert wide is not None
    assert tuple(mine.shape) == other.shape
    assert mine.dtype == wide.dtype
    if not mine.is_floating_point():
        np.testing.assert_array_equal(mine.numpy(), wide.numpy())
        return
    finite = wide.double()[torch.isfinite(wide)]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    torch.testing.assert_close(mine.double(), wide.double(), rtol=0, atol=closeness * max(scale, 1.0), equal_nan=True)


def tensor_type(name: str) -> int:
    return int(getattr(TensorProto, name))
