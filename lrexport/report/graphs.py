"""Nodes of an exported graph that multiply, and what differs between two graphs, as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lrexport.report.tables import Table
from lrexport.units import format_bytes, format_count, format_share


@dataclass(frozen=True)
class Node:
    """``weight`` is its shape, None for a product of activations; ``bytes`` its size as stored; MACs of one input."""

    name: str
    operator: str
    weight: tuple[int, ...] | None
    macs: int
    bytes: int


@dataclass(frozen=True)
class Graph:
    """``params`` counts weights of every kind, ``bytes`` external data too; ``uncounted`` are operators of unknown cost."""

    macs: int
    params: int
    bytes: int
    uncounted: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class GraphDiff:
    """Nodes by name that differ, None on the side that does not have one; ``same`` counts the rest."""

    nodes: dict[str, tuple[Node | None, Node | None]]
    same: int
    graphs: tuple[Graph, Graph]


def graph_table(graph: Graph) -> Table:
    """Node by node: operator, the weight's shape and bytes, and MACs."""
    rows = [(n.name, n.operator, _weight(n), format_bytes(n.bytes), format_count(n.macs)) for n in graph.nodes]
    caption = f"{format_count(graph.macs)} MACs of one input, counted on the exported graph; "
    caption += f"{format_count(graph.params)} parameters; the file has {format_bytes(graph.bytes)}."
    columns = ("node", "operator", "weight", "bytes of it", "MACs")
    return Table(columns, tuple(rows), caption, words=("operator",), spare=("bytes of it", "operator"))


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """As docs/plans.md describes it."""
    return asdict(graph)


def diff_graphs(old: Graph, new: Graph) -> GraphDiff:
    """What changes from ``old`` to ``new``, node by node of the same name."""
    before, after = ({node.name: node for node in graph.nodes} for graph in (old, new))
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return GraphDiff(differ, len(pairs) - len(differ), (old, new))


def graph_diff_table(diff: GraphDiff, before: str, after: str) -> Table:
    """A line for every node that differs, and the graphs' sums."""
    rows = []
    for name, (old, new) in diff.nodes.items():
        macs = (format_count(node.macs) if node else "not there" for node in (old, new))
        share = format_share(new.macs, old.macs) if old and new else ""
        rows.append((name, _weight(old), _weight(new), *macs, share))
    old_graph, new_graph = diff.graphs
    for label, form, was, becomes in (
        ("all MACs", format_count, old_graph.macs, new_graph.macs),
        ("all parameters", format_count, old_graph.params, new_graph.params),
        ("bytes of the file", format_bytes, old_graph.bytes, new_graph.bytes),
    ):
        rows.append((label, "", "", form(was), form(becomes), format_share(becomes, was)))
    same = f"{diff.same} node{' is' if diff.same == 1 else 's are'} the same"
    caption = f"From {before} to {after}, MACs of one input on the exported graphs; {same}."
    columns = ("node", "weight", "weight after", "MACs", "MACs after", "ratio")
    return Table(columns, tuple(rows), caption, spare=("ratio", "weight", "weight after"))


def graph_diff_to_json(diff: GraphDiff, before: str, after: str) -> dict[str, Any]:
    """As docs/plans.md describes it."""
    sums = ({"macs": graph.macs, "params": graph.params, "bytes": graph.bytes} for graph in diff.graphs)
    return {
        "from": before,
        "to": after,
        "nodes": {
            name: {side: node and asdict(node) for side, node in zip(("from", "to"), pair, strict=True)}
            for name, pair in diff.nodes.items()
        },
        "same": diff.same,
        "totals": dict(zip(("from", "to"), sums, strict=True)),
    }


def _weight(node: Node | None) -> str:
    if node is None:
        return ""
    return "×".join(map(str, node.weight)) if node.weight else "activations"
