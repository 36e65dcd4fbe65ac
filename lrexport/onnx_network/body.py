"""A graph of ONNX, or the branch of an If, as steps to run: what each needs, what it makes, and what is constant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper
from torch import Tensor

from lrexport.artifacts.onnx_graphs import domain_of, graphs_in, opset_of
from lrexport.errors import InputError
from lrexport.onnx_network.operators.facts import NodeFacts, Operator, from_array
from lrexport.onnx_network.operators.shapes import constant_value
from lrexport.onnx_network.operators.table import operator_of
from lrexport.onnx_network.source import SourceModel
from lrexport.text import first_line

# Values that are computed once at reading have at most this many values; larger ones are computed in every run.
_MOST_FOLDED = 1 << 26
# A sparse tensor with its zeros may be as large as a whole file.
_MOST_SPARSE_BYTES = 2 << 30
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
# These depend on more than their inputs.
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

# Shapes of values by name; None for free sizes.
Shapes = Mapping[str, tuple[int | None, ...]]
# Where a node is: (node, attribute) for every graph around it, then its own place.
Address = tuple[tuple[tuple[int, str], ...], int]


@dataclass(frozen=True)
class Step:
    """One node. ``needs`` are its inputs, "" for missing ones, ``captured`` those of the graphs inside it."""

    node: NodeProto
    address: Address
    facts: NodeFacts
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    captured: frozenset[str] = frozenset()
    operator: Operator | None = None
    branches: tuple[Body, Body] | None = None


@dataclass
class Body:
    """The steps of a graph in their order. ``constants`` are its own, by name; ``origins`` from which tensor each was made.

    ``texts`` are constants that torch cannot hold, ``sparse`` those that the file keeps as sparse tensors. ``folded`` are
    the places of the nodes that made constants. ``shapes`` are those of the file's values as far as they are known before
    any input is, with None for free sizes.
    """

    outputs: tuple[str, ...]
    steps: list[Step]
    constants: dict[str, Tensor]
    origins: dict[str, str]
    texts: dict[str, TensorProto]
    folded: list[Address]
    outer: Body | None = None
    sparse: set[str] = field(default_factory=set)
    shapes: Shapes = field(default_factory=dict)

    def around(self) -> Iterator[Body]:
        """This body, then those around it, from the inside out."""
        body: Body | None = self
        while body is not None:
            yield body
            body = body.outer

    def constant(self, name: str) -> Tensor | None:
        """A constant of this graph or one around it."""
        return next((body.constants[name] for body in self.around() if name in body.constants), None)

    def origin(self, name: str) -> str:
        """The name of the tensor in the file that a constant was made from."""
        return next((body.origins[name] for body in self.around() if name in body.origins), name)

    def is_sparse(self, name: str) -> bool:
        """Whether a constant was made from a sparse tensor of the file."""
        origin = self.origin(name)
        return any(origin in body.sparse for body in self.around())

    def text(self, name: str) -> TensorProto | None:
        """A constant that torch cannot hold, of this graph or one around it."""
        return next((body.texts[name] for body in self.around() if name in body.texts), None)

    def all(self) -> Iterator[Body]:
        """This body and those inside it."""
        yield self
        for step in self.steps:
            for branch in step.branches or ():
                yield from branch.all()


@dataclass(frozen=True)
class _File:
    """What all bodies of a model share; ``functions`` are its own, by domain and name."""

    source: SourceModel
    opset: int
    functions: frozenset[tuple[str, str]]
    shapes: Shapes


def body_of(source: SourceModel, shapes: Shapes) -> Body:
    """The steps of a model. Raises InputError for tensors that cannot be read."""
    functions = frozenset((function.domain, function.name) for function in source.light.functions)
    return _body(source.light.graph, _File(source, opset_of(source.light), functions, shapes), (), None)


def _body(graph: GraphProto, file: _File, place: tuple[tuple[int, str], ...], outer: Body | None) -> Body:
    body = Body(tuple(item.name for item in graph.output), [], {}, {}, {}, [], outer, shapes=file.shapes)
    for tensor in graph.initializer:
        _keep(body, tensor.name, _tensor(file.source, tensor), tensor)
    for sparse in graph.sparse_initializer:
        _keep(body, sparse.values.name, _from_sparse(sparse), None)
        body.sparse.add(sparse.values.name)
    for index, node in enumerate(graph.node):
        address = (place, index)
        needs, makes = tuple(node.input), tuple(node.output)
        if node.op_type == "Constant" and not domain_of(node):
            value = _constant(file, node)
            body.folded.append(address)
            if node.attribute[0].name == "sparse_value":
                body.sparse.add(makes[0])
            _keep(body, makes[0], value, _text_of(node) if value is None else None)
            continue
        facts = facts_of(node, file.opset)
        known = (facts.domain, facts.operator) not in file.functions
        operator = operator_of(facts) if known else None
        if operator is not None and facts.operator not in _RANDOM and _fold(body, operator, needs, makes):
            body.folded.append(address)
            continue
        branches = None
        if facts.operator == "If" and not facts.domain:
            inner = {attribute.name: attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH}
            made = [_body(inner[name], file, (*place, (index, name)), body) for name in ("then_branch", "else_branch")]
            branches = (made[0], made[1])
        captured = frozenset(_captured(node))
        body.steps.append(Step(node, address, facts, needs, makes, captured, operator, branches))
    return body


def _keep(body: Body, name: str, value: Tensor | None, proto: TensorProto | None) -> None:
    body.origins[name] = name
    if value is not None:
        body.constants[name] = value
    elif proto is not None:
        body.texts[name] = proto


def _text_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node that torch cannot hold."""
    value = helper.get_attribute_value(node.attribute[0])
    if isinstance(value, TensorProto):
        return value
    if node.attribute[0].name in ("value_string", "value_strings"):
        texts = value if isinstance(value, list) else [value]
        dims = [len(texts)] if isinstance(value, list) else []
        return helper.make_tensor(node.output[0], TensorProto.STRING, dims, texts)
    return None


def _constant(file: _File, node: NodeProto) -> Tensor | None:
    """The value of a Constant node."""
    tensors = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    if len(tensors) == len(node.attribute) == 1 and node.attribute[0].name == "value":
        return _tensor(file.source, tensors[0])
    if node.attribute[0].name == "sparse_value":
        return _from_sparse(node.attribute[0].sparse_tensor)
    return constant_value(facts_of(node, file.opset))


def _tensor(source: SourceModel, tensor: TensorProto) -> Tensor | None:
    try:
        return None if tensor.data_type == TensorProto.STRING else from_array(source.array(tensor), shared=True)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"tensor {tensor.name!r} cannot be read: {error}") from error


def _from_sparse(sparse: SparseTensorProto) -> Tensor | None:
    """A sparse tensor with its zeros. Raises InputError if it cannot be read."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    try:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if not all(size >= 0 for size in dims) or math.prod(dims) * values.itemsize > _MOST_SPARSE_BYTES:
            raise ValueError(f"its shape is {dims}")
        whole = np.zeros(dims, values.dtype)
        whole[np.unravel_index(places, dims) if places.ndim == 1 else tuple(places.T)] = values
        return from_array(whole, shared=True)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"sparse tensor {name!r} cannot be read: {first_line(error)}") from error


def _fold(body: Body, operator: Operator, needs: tuple[str, ...], makes: tuple[str, ...]) -> bool:
    """Compute what depends on constants only, once; whether it did."""
    values = [body.constant(name) if name else None for name in needs]
    if not needs or any(name and value is None for name, value in zip(needs, values, strict=True)):
        return False
    try:
        made = operator(values)
    except Exception:  # in ONNX Runtime then, whose message is better
        return False
    if sum(value.numel() for value in made) > _MOST_FOLDED:
        return False
    for name, value in zip(makes, made, strict=False):
        body.constants[name] = value.contiguous()
        body.origins[name] = body.origin(next(need for need in needs if need))
    return True


def facts_of(node: NodeProto, opset: int) -> NodeFacts:
    """What implementations know of a node."""
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in _GRAPHS:
            continue
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            value = numpy_helper.to_array(value) if value.data_type != TensorProto.STRING else np.array(["text"])
        elif not isinstance(value, int | float | bytes | str):
            value = list(value) if hasattr(value, "__iter__") else value
        attributes[attribute.name] = value
    return NodeFacts(node.op_type, opset, attributes, domain_of(node), len(node.input), len(node.output))


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that the graphs inside a node take from around it."""
    for graph in graphs_in(node):
        own = {tensor.name for tensor in graph.initializer} | {item.name for item in graph.input}
        for inner in graph.node:
            for name in (*inner.input, *_captured(inner)):
                if name and name not in own:
                    yield name
            own |= set(inner.output)
        for item in graph.output:  # a branch may return a value from around it
            if item.name not in own:
                yield item.name


def types_and_shapes_of(model: onnx.ModelProto) -> tuple[dict[str, int], Shapes]:
    """ONNX element types and shapes of values by name, as far as onnx's inference finds them; their values do not matter."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
    except Exception:  # C++ raises several types; then types are those of the tensors that come
        inferred = model
    items = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    known = {item.name: item.type.tensor_type for item in items if item.type.HasField("tensor_type")}
    types = {name: kind.elem_type for name, kind in known.items()}
    shapes = {
        name: tuple(size.dim_value if size.dim_value > 0 else None for size in kind.shape.dim)
        for name, kind in known.items()
        if kind.HasField("shape")
    }
    return {**types, **{tensor.name: tensor.data_type for tensor in model.graph.initializer}}, shapes
