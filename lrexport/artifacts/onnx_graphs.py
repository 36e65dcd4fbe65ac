"""Parts of an ONNX model by plain attribute access, which several readers need; onnx itself is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

STANDARD = ("", "ai.onnx")  # both are names of the standard's own domain
MICROSOFT = "com.microsoft"  # ONNX Runtime's own


def domain_of(part: Any) -> str:
    """The domain of a node or of an import, "" for the standard's."""
    return "" if part.domain in STANDARD else str(part.domain)


def operator_of(node: Any) -> str:
    """``Conv``, or ``com.microsoft.FusedConv`` beyond the standard."""
    domain = domain_of(node)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def opset_of(model: Any) -> int:
    """The version of the standard's operators that a model declares, 0 where it declares none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), 0)


def graphs_in(node: Any) -> list[Any]:
    """The graphs that a node holds itself, such as the branches of an If."""
    return [
        graph for attribute in node.attribute for graph in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def all_graphs(graphs: Iterable[Any]) -> Iterator[Any]:
    """The graphs, or functions, and all graphs inside of them."""
    waiting = list(graphs)
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            waiting += graphs_in(node)


def bodies(model: Any) -> Iterator[Any]:
    """All that holds nodes: the graph, the functions, and the graphs inside of both."""
    return all_graphs([model.graph, *model.functions])
