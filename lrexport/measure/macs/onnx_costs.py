"""Costs of nodes of an ONNX graph, and nodes that could not be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from lrexport.artifacts.onnx_graphs import operator_of
from lrexport.measure.macs.onnx_values import Value, attributes_of


@dataclass(frozen=True)
class NodeCost:
    """A node that multiplies: name, operator, shape of the weight (None for a product of activations) and MACs.

    ``bytes`` is the stored size of the weight, ``weight`` its name in the graph.
    """

    name: str
    operator: str
    weight_shape: tuple[int, ...] | None
    macs: int
    params: int
    bytes: int
    weight: str | None = None


@dataclass(frozen=True)
class UncountedNode:
    """A node that computes but whose MACs are unknown, for ``reason``; the weight as in :class:`NodeCost`."""

    name: str
    operator: str
    weight_shape: tuple[int, ...] | None
    bytes: int
    reason: str


@dataclass
class Tally:
    """Costs of a part of the graph, and the nodes that they do not include."""

    nodes: list[NodeCost] = field(default_factory=list)
    unknown: list[UncountedNode] = field(default_factory=list)

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    def add(self, other: Tally, times: int = 1, prefix: str = "") -> None:
        """Add another part's costs, multiplied by ``times``; ``prefix`` is that part's path."""
        nodes = other.nodes
        if times != 1 or prefix:
            nodes = [
                replace(n, macs=n.macs * times, name=f"{prefix}{n.name or n.operator}" if prefix else n.name) for n in nodes
            ]
        self.nodes += nodes
        self.unknown += [replace(n, name=f"{prefix}{n.name or n.operator}") if prefix else n for n in other.unknown]

    def leave_out(self, node: Any, reason: str, held: Sequence[Value] = ()) -> None:
        """Add a node whose MACs are unknown; ``held`` are its weights."""
        constants = [value for value in held if value.constant is not None]
        shape = constants[0].sizes if constants else None
        size = sum(value.constant.bytes for value in constants if value.constant is not None)
        self.unknown.append(UncountedNode(node.name, operator_of(node), shape, size, reason))


def costed(node: Any, held: Sequence[Value], macs: int) -> NodeCost:
    """The cost with the constant behind the first of ``held`` as weight; several weights are counted together."""
    constants = [value.constant for value in held if value.constant is not None]
    if not constants or held[0].constant is None:
        return NodeCost(node.name, operator_of(node), None, macs, 0, 0)
    shape, params = held[0].sizes, sum(prod(value.sizes or ()) for value in held if value.constant is not None)
    attributes = attributes_of(node)
    if node.op_type in ("MatMulNBits", "MatMulBnb4"):  # the weight's own shape; it is stored in blocks
        shape = (attributes.get("K", 0), attributes.get("N", 0))
        params = prod(shape)
    return NodeCost(
        node.name, operator_of(node), shape, macs, params, sum(constant.bytes for constant in constants), constants[0].name
    )
