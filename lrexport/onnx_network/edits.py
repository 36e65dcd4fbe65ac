"""Edit a model as protobuf: its graphs, nodes and names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import GraphProto, NodeProto

from lrexport.artifacts.onnx_graphs import bodies


def free_name(wanted: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; it is taken then."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def graph_at(model: onnx.ModelProto, place: tuple[tuple[int, str], ...]) -> GraphProto:
    """The graph of the model at a place: a node and an attribute for every graph around it."""
    graph = model.graph
    for index, name in place:
        graph = next(attribute.g for attribute in graph.node[index].attribute if attribute.name == name)
    return graph


def replace_nodes(graph: GraphProto, nodes: dict[int, list[NodeProto]]) -> None:
    """Put other nodes into the places of those at these indices, in place."""
    made: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        made += nodes.get(index, [node])
    copies = []
    for node in made:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def drop(items: Any, gone: Sequence[bool]) -> None:
    """Remove the items of a repeated field that are ``gone``, in place."""
    for index in reversed(range(len(gone))):
        if gone[index]:
            del items[index]


def names_in(model: onnx.ModelProto) -> set[str]:
    """All names of values."""
    names: set[str] = set()
    for body in bodies(model):
        for node in body.node:
            names |= {*node.input, *node.output}
        if isinstance(body, GraphProto):
            names |= {item.name for item in (*body.input, *body.output, *body.initializer)}
            names |= {item.values.name for item in body.sparse_initializer}
    return names


def names_used(model: onnx.ModelProto) -> set[str]:
    """Names of values that a node takes, or that a graph returns."""
    used: set[str] = set()
    for body in bodies(model):
        for node in body.node:
            used |= set(node.input)
        outputs: Iterable[Any] = body.output
        used |= {item if isinstance(item, str) else item.name for item in outputs}
    return used
