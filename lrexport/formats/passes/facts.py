"""What passes ask of a graph: who makes and uses a tensor, constants, shapes and types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lrexport.artifacts.onnx_graphs import STANDARD, graphs_in, operator_of, opset_of

Sizes = tuple[int | None, ...]  # None: a free size


class Facts:
    """Facts of the outermost graph of ``model``, as it was when they were first asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset = opset_of(model)
        self._model, graph = model, model.graph
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {item.name for item in graph.output}
        self._users: dict[str, list[str]] = defaultdict(list)
        for node in graph.node:
            for name in _read_by(node):
                self._users[name].append(operator_of(node))

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for inputs and constants."""
        return self._makers.get(name)

    def is_used_once(self, name: str) -> bool:
        """Whether one input of one node, and no output of the graph, is this tensor."""
        return len(self._users[name]) == 1 and name not in self._outputs

    def users(self, name: str) -> Sequence[str]:
        """The operators that read a tensor, one for each input; empty if it is an output of the graph as well."""
        return () if name in self._outputs else self._users[name]

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of an initializer or of a Constant node with a tensor; None for other tensors."""
        tensor = self._tensors.get(name)
        node = self._makers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.domain in STANDARD:
            tensor = next((each.t for each in node.attribute if each.name == "value"), None)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def sizes(self, name: str) -> Sizes | None:
        """The sizes of a tensor's axes by shape inference; None where their number is unknown."""
        known = self._types.get(name)
        if known is None or not known.HasField("shape"):
            return None
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in known.shape.dim)

    def is_float32(self, name: str) -> bool:
        """Whether a tensor is known to be float32."""
        known = self._types.get(name)
        return known is not None and known.elem_type == onnx.TensorProto.FLOAT

    @cached_property
    def _types(self) -> dict[str, Any]:
        graph = onnx.shape_inference.infer_shapes(self._model).graph
        return {item.name: item.type.tensor_type for item in (*graph.value_info, *graph.input, *graph.output)}


def _read_by(node: onnx.NodeProto) -> Iterable[str]:
    """Names of tensors that a node or a graph in it reads."""
    yield from filter(None, node.input)
    for inner in graphs_in(node):
        for each in inner.node:
            yield from _read_by(each)
        yield from (item.name for item in inner.output)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, bytes as text; ``default`` if it has none."""
    for each in node.attribute:
        if each.name == name:
            value = onnx.helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def integers(facts: Facts, node: onnx.NodeProto, place: int, name: str) -> list[int] | None:
    """What a node takes as input ``place`` or, in older opsets, as its attribute ``name``; None if absent or computed."""
    if len(node.input) > place and node.input[place]:
        value = facts.constant(node.input[place])
        return None if value is None or value.dtype.kind not in "iu" else [int(each) for each in np.atleast_1d(value)]
    given = attribute(node, name)
    return None if given is None else list(given)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove, in place, nodes and constants that no output of the graph depends on."""
    while True:
        used = {name for node in graph.node for name in _read_by(node)} | {item.name for item in graph.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
