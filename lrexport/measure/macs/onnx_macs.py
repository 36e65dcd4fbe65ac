"""MACs, parameters and bytes of an ONNX graph.

Convention: multiply–accumulates of convolutions and matrix products for one input; bias, normalisation, pooling and
element-wise operators are not counted; 1 MAC = 2 FLOPs. One input is one sample if the first axis is the batch: because
it is free, or because the graph proves it. Otherwise the file is counted for its declared sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lrexport.measure.macs.onnx_batch import batch_of
from lrexport.measure.macs.onnx_costs import NodeCost, UncountedNode
from lrexport.measure.macs.onnx_inputs import inputs_of, sized_inputs
from lrexport.measure.macs.onnx_params import count_params
from lrexport.measure.macs.onnx_values import Shape, Value
from lrexport.measure.macs.onnx_walk import Walk

if TYPE_CHECKING:  # reading a count from another process needs no onnx
    import onnx

# Suffixes of weights in an exported graph, after the layer's name: of pairs, of int8.
_ENDINGS = ("_quantized", ".weight", ".first", ".second")


def layer_of(weight: str) -> str:
    """The layer's name from its weight's name, the same for both halves of a pair."""
    for ending in _ENDINGS:
        weight = weight.removesuffix(ending)
    return weight


@dataclass(frozen=True)
class GraphCost:
    """Cost of a graph. ``params`` counts weights of every kind. ``uncounted`` names operators whose MACs are unknown: with
    any of them ``macs`` is a lower bound. ``inputs`` are the sizes that MACs are counted for, None for an unknown size;
    ``unknown`` are the nodes that are not counted.
    """

    nodes: tuple[NodeCost, ...]
    params: int
    uncounted: tuple[str, ...]
    inputs: tuple[tuple[str, Shape | None], ...] = ()
    unknown: tuple[UncountedNode, ...] = ()

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)


def count_onnx(
    model: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    batch: int | None = None,
) -> GraphCost:
    """Cost of a graph for one input, from inferred shapes. ``uncounted`` lists operators that are not counted, and why.

    ``shapes`` are sizes by input name, ``values`` small arrays by name, such as a rate that selects a branch. ``batch`` is
    the first size of the inputs if it is known to be the batch; else it must follow from the graph. Raises UsageError if
    they do not fit the graph's inputs, InputError if functions call one another endlessly.
    """
    sized = sized_inputs(model.graph, shapes or {}, values)
    walk = Walk(model, sized)
    batch = batch or batch_of(model.graph, walk.values)
    nodes = tuple(replace(node, macs=node.macs // batch) for node in walk.tally.nodes)
    counted_for = {item.name: Value(sized.types[item.name]).shape for item in inputs_of(model.graph)}
    if batch > 1:
        counted_for = {name: (1, *shape[1:]) if shape else shape for name, shape in counted_for.items()}
    unknown = tuple(walk.tally.unknown)
    uncounted = tuple(sorted({node.reason for node in unknown}))
    return GraphCost(nodes, count_params(model), uncounted, tuple(counted_for.items()), unknown)
