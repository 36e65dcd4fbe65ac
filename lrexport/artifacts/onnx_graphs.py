"""Parts of an ONNX model, by plain attribute access, without importing onnx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

STANDARD = ("", "ai.onnx")  # the two names of the standard domain
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's operators
SHORTCUT_KERNEL = ".shortcut_kernel"  # the end of the names of constant kernels that no layer has


def domain_of(part: Any) -> str:
    """The domain of a node or an import; "" for the standard domain."""
    return "" if part.domain in STANDARD else str(part.domain)


def operator_of(node: Any) -> str:
    """``Conv``, or ``com.microsoft.FusedConv`` outside of the standard domain."""
    domain = domain_of(node)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def opset_of(model: Any) -> int:
    """The version of the standard operators that a model declares; 0 if it declares none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), 0)


def graphs_in(node: Any) -> list[Any]:
    """The graphs in a node's attributes, such as the branches of an If."""
    return [
        graph for attribute in node.attribute for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def all_graphs(graphs: Iterable[Any]) -> Iterator[Any]:
    """The graphs or functions, with all inner graphs."""
    waiting = list(graphs)
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            waiting += graphs_in(node)


def bodies(model: Any) -> Iterator[Any]:
    """Everything that contains nodes: the graph, the functions, and their inner graphs."""
    return all_graphs([model.graph, *model.functions])
