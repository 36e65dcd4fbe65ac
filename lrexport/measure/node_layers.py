"""Time by layer, from the times of a runtime's nodes for an exported graph.

ONNX Runtime 1.23 to 1.31 names the nodes of an optimised graph after the original ones: the same name if an activation or a
sum was fused into a node, ``TENSOR_nchwc`` if a convolution, with fused nodes, computes TENSOR in the blocked layout, and
otherwise a name with a prefix or suffix (``fused NAME``, ``NAME_token_7``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lrexport.artifacts.onnx_graphs import SHORTCUT_KERNEL
from lrexport.measure.macs.onnx_macs import layer_of

if TYPE_CHECKING:
    import onnx

OTHER = ""
_BLOCKED = "_nchwc"
_ADDED = re.compile(r"^fused |_quant$|/MatMulAddFusion$|_token_\d+$")


def layer_times(graph: onnx.GraphProto, nodes_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of each layer of ``graph``, and of all other nodes together under "", from a profile's nodes.

    A layer includes what the runtime fused into it, but not changes of layout between layers. A layer that is missing in the
    profile, or one half of it, is omitted: its time is unknown, not zero.
    """
    names = _Names(graph)
    node_of: dict[str, str] = {}
    # Nodes with a layer's own name first: if a sum of two convolutions is fused into one of them, the other one remains.
    for name in nodes_ms:
        if (node := names.own(name)) is not None:
            node_of[name] = node
    for name in nodes_ms:
        if name not in node_of and (node := names.fused(name, set(node_of.values()))) is not None:
            node_of[name] = node
    unknown = {names.layers[node] for node in set(names.layers) - set(node_of.values())}
    spent = {layer: 0.0 for layer in names.layers.values() if layer not in unknown} | {OTHER: 0.0}
    for name, milliseconds in nodes_ms.items():
        layer = names.layers[node_of[name]] if name in node_of else OTHER
        spent[OTHER if layer in unknown else layer] += milliseconds
    return spent


class _Names:
    """The graph's nodes with a weight, by name and by output. ``layers``: node → layer."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        tensors = [tensor for tensor in graph.initializer if not layer_of(tensor.name).endswith(SHORTCUT_KERNEL)]
        weights = {tensor.name for tensor in tensors if len(tensor.dims) > 1}
        self._producers = {output: node for node in graph.node for output in node.output}
        self._place = {node.name: place for place, node in enumerate(graph.node)}
        self.layers = {node.name: layer_of(weight) for node in graph.node if (weight := self._weight(node, weights))}

    def _weight(self, node: onnx.NodeProto, weights: set[str]) -> str | None:
        """A layer's weight, in int8 the input of its DequantizeLinear."""
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        for name in node.input[:2]:
            source = self._producers.get(name)
            stored = source.input[0] if source is not None and source.op_type == "DequantizeLinear" else name
            if stored in weights:
                return stored
        return None

    def own(self, name: str) -> str | None:
        """The layer's node that ``name`` was made from, without later nodes."""
        for known in (name, _ADDED.sub("", name)):
            if known in self.layers:
                return known
        node = self._producers.get(name.removesuffix(_BLOCKED))
        return node.name if node is not None and node.name in self.layers else None

    def fused(self, name: str, taken: set[str]) -> str | None:
        """The layer's node that computes ``TENSOR_nchwc`` with nodes fused after it: the last one not yet taken."""
        if not name.endswith(_BLOCKED) or name.removesuffix(_BLOCKED) not in self._producers:
            return None
        start = self._producers[name.removesuffix(_BLOCKED)]
        free = [node for node in self._nearest(start) if node not in taken]
        return max(free, key=lambda node: self._place[node], default=None)

    def _nearest(self, node: onnx.NodeProto) -> Iterator[str]:
        """The layers' nodes from which ``node`` is computed without another layer in between."""
        waiting, seen = [node], set()
        while waiting:
            current = waiting.pop()
            if current.name in self.layers:
                yield current.name
            elif current.name not in seen:
                seen.add(current.name)
                waiting += [self._producers[given] for given in current.input if given in self._producers]
