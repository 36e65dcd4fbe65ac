"""Nodes of an exported graph that multiply, and differences between two graphs, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lrexport.report.tables import Table
from lrexport.units import format_bytes, format_count, format_macs, format_share


@dataclass(frozen=True)
class Node:
    """``weight`` is the weight's shape, None for a product of activations; ``bytes`` its stored size; MACs are for one
    input, None if unknown."""

    name: str
    operator: str
    weight: tuple[int, ...] | None
    macs: int | None
    bytes: int


@dataclass(frozen=True)
class Graph:
    """``params`` counts weights of every kind, ``bytes`` includes external data; ``uncounted`` are operators of unknown
    cost: with any of them ``macs`` is a lower bound. ``inputs`` are the sizes that MACs are counted for, None if unknown.
    """

    macs: int
    params: int
    bytes: int
    uncounted: tuple[str, ...]
    nodes: tuple[Node, ...]
    inputs: Mapping[str, Sequence[int | None] | None] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether all MACs of the graph were counted."""
        return not self.uncounted

    @property
    def macs_text(self) -> str:
        """MACs for people; a lower bound is marked as such."""
        return format_macs(self.macs, self.is_exact)

    @property
    def figures(self) -> dict[str, Any]:
        """MACs for machines; null if nothing could be counted, rather than 0."""
        macs = self.macs if self.macs or self.is_exact else None
        return {"macs": macs, "params": self.params, "bytes": self.bytes, "uncounted": self.uncounted}


@dataclass(frozen=True)
class GraphDiff:
    """Differing nodes by name, None for a graph that lacks one; ``same`` counts the others."""

    nodes: dict[str, tuple[Node | None, Node | None]]
    same: int
    graphs: tuple[Graph, Graph]


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file: the shape of its weight, and its MACs for one input, None if unknown.

    ``full_ranks`` are those of the schemes by which it can become a pair; without any, ``reason`` says why it stays dense.
    """

    name: str
    weight: tuple[int, ...] | None
    macs: int | None
    full_ranks: Mapping[str, int]
    reason: str = ""


def layer_table(layers: Sequence[FileLayer]) -> Table:
    """The layers of a file: those that can become pairs with their schemes and full ranks, the others with the reason."""
    rows = [
        (
            layer.name,
            "" if layer.weight is None else "×".join(map(str, layer.weight)),
            "" if layer.macs is None else format_count(layer.macs),
            ", ".join(f"{scheme} {rank}" for scheme, rank in layer.full_ranks.items()),
            layer.reason,
        )
        for layer in layers
    ]
    can = sum(bool(layer.full_ranks) for layer in layers)
    macs = sum(layer.macs or 0 for layer in layers if layer.full_ranks)
    caption = f"{can} of {len(layers)} layers, with {format_count(macs)} MACs, can become pairs."
    columns = ("layer", "weight", "MACs", "schemes and full ranks", "why dense")
    return Table(columns, tuple(rows), caption, words=("schemes and full ranks", "why dense"), spare=("weight",))


def graph_table(graph: Graph) -> Table:
    """Node by node: operator, the weight's shape and bytes, and MACs; only sums if no node multiplies."""
    columns: tuple[str, ...] = ("node", "operator", "weight", "weight bytes", "MACs")
    if not graph.nodes:
        rows: list[tuple[str, ...]] = [(label, text(graph)) for label, text in _SUMS]
        return Table(("", "all"), tuple(rows), f"No node has MACs. {_counted_for(graph)}".strip())
    rows = [(n.name, n.operator, _weight(n), format_bytes(n.bytes), _macs(n)) for n in graph.nodes]
    caption = f"{_macs_text(graph)}; {format_count(graph.params)} parameters; the file has {format_bytes(graph.bytes)}."
    caption = f"{caption} {_counted_for(graph)}".strip()
    return Table(columns, tuple(rows), caption, words=("operator",), spare=("weight bytes", "operator"))


_SUMS: tuple[tuple[str, Callable[[Graph], str]], ...] = (
    ("all MACs", lambda graph: graph.macs_text),
    ("all parameters", lambda graph: format_count(graph.params)),
    ("bytes of the file", lambda graph: format_bytes(graph.bytes)),
)


def _macs_text(graph: Graph) -> str:
    if graph.is_exact:
        return f"{graph.macs_text} MACs of one input, counted on the exported graph"
    least = f"at least {format_count(graph.macs)} MACs of one input" if graph.macs else "MACs unknown"
    return f"{least}: {', '.join(graph.uncounted)} not counted"


def _counted_for(graph: Graph) -> str:
    """The input sizes that MACs are counted for."""
    if not graph.inputs:
        return ""
    inputs = ", ".join(f"{name} of {_sizes(shape)}" for name, shape in graph.inputs.items())
    is_free = any(shape is None or None in shape for shape in graph.inputs.values())
    hint = " Give sizes that the file leaves open by --shape NAME=SIZES." if is_free and not graph.is_exact else ""
    return f"One input: {inputs}.{hint}"


def _sizes(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "unknown shape"
    return "×".join("?" if size is None else str(size) for size in shape) or "one number"


def _macs(node: Node) -> str:
    return "not counted" if node.macs is None else format_count(node.macs)


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as documented in docs/plans.md."""
    return {**asdict(graph), **graph.figures}


def diff_graphs(old: Graph, new: Graph) -> GraphDiff:
    """The changes from ``old`` to ``new``, by name of node."""
    before, after = ({node.name: node for node in graph.nodes} for graph in (old, new))
    pairs = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    differ = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return GraphDiff(differ, len(pairs) - len(differ), (old, new))


def graph_diff_table(diff: GraphDiff, before: str, after: str) -> Table:
    """One row per node that differs, and the graphs' sums."""
    rows = []
    for name, (old, new) in diff.nodes.items():
        macs = (_macs(node) if node else "missing" for node in (old, new))
        both = [node.macs for node in (old, new) if node is not None and node.macs is not None]
        rows.append((name, _weight(old), _weight(new), *macs, format_share(both[1], both[0]) if len(both) == 2 else ""))
    was, becomes = diff.graphs
    shares = (
        format_share(becomes.macs, was.macs) if was.is_exact and becomes.is_exact else "unknown",
        format_share(becomes.params, was.params),
        format_share(becomes.bytes, was.bytes),
    )
    rows += [(label, "", "", text(was), text(becomes), share) for (label, text), share in zip(_SUMS, shares, strict=True)]
    same = f"{diff.same} node{' is' if diff.same == 1 else 's are'} the same"
    caption = f"From {before} to {after}, MACs of one input on the exported graphs; {same}."
    if not (was.is_exact and becomes.is_exact):
        caption += " MACs of some operators are not counted: sums are lower bounds, and their ratio is unknown."
    columns = ("node", "weight", "weight after", "MACs", "MACs after", "ratio")
    return Table(columns, tuple(rows), caption, spare=("ratio", "weight", "weight after"))


def graph_diff_to_json(diff: GraphDiff, before: str, after: str) -> dict[str, Any]:
    """The differences as documented in docs/plans.md."""
    return {
        "from": before,
        "to": after,
        "nodes": {
            name: {side: node and asdict(node) for side, node in zip(("from", "to"), pair, strict=True)}
            for name, pair in diff.nodes.items()
        },
        "same": diff.same,
        "totals": dict(zip(("from", "to"), (graph.figures for graph in diff.graphs), strict=True)),
    }


def _weight(node: Node | None) -> str:
    if node is None:
        return ""
    return "×".join(map(str, node.weight)) if node.weight else "activations"
