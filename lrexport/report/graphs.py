"""Nodes of an exported graph that multiply, and what differs between two graphs, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lrexport.report.tables import Table
from lrexport.units import format_bytes, format_count, format_macs, format_share


@dataclass(frozen=True)
class Node:
    """``weight`` is its shape, None for a product of activations; ``bytes`` its size as stored; MACs of one input, None
    where they are unknown."""

    name: str
    operator: str
    weight: tuple[int, ...] | None
    macs: int | None
    bytes: int


@dataclass(frozen=True)
class Graph:
    """``params`` counts weights of every kind, ``bytes`` external data too; ``uncounted`` are operators of unknown cost:
    with any of them ``macs`` is a lower bound. ``inputs`` are the sizes that MACs are counted for, None for an unknown one.
    """

    macs: int
    params: int
    bytes: int
    uncounted: tuple[str, ...]
    nodes: tuple[Node, ...]
    inputs: Mapping[str, Sequence[int | None] | None] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether all MACs of the graph are counted."""
        return not self.uncounted

    @property
    def macs_text(self) -> str:
        """For people: a lower bound is said to be one."""
        return format_macs(self.macs, self.is_exact)

    @property
    def figures(self) -> dict[str, Any]:
        """For machines: null where nothing could be counted, so that no 0 stands for it."""
        macs = self.macs if self.macs or self.is_exact else None
        return {"macs": macs, "params": self.params, "bytes": self.bytes, "uncounted": self.uncounted}


@dataclass(frozen=True)
class GraphDiff:
    """Nodes by name that differ, None on the side that does not have one; ``same`` counts the rest."""

    nodes: dict[str, tuple[Node | None, Node | None]]
    same: int
    graphs: tuple[Graph, Graph]


def graph_table(graph: Graph) -> Table:
    """Node by node: operator, the weight's shape and bytes, and MACs; the sums alone where no node multiplies."""
    columns: tuple[str, ...] = ("node", "operator", "weight", "bytes of it", "MACs")
    if not graph.nodes:
        rows: list[tuple[str, ...]] = [(label, text(graph)) for label, text in _SUMS]
        return Table(("", "all"), tuple(rows), f"No node has MACs. {_counted_for(graph)}".strip())
    rows = [(n.name, n.operator, _weight(n), format_bytes(n.bytes), _macs(n)) for n in graph.nodes]
    caption = f"{_macs_said(graph)}; {format_count(graph.params)} parameters; the file has {format_bytes(graph.bytes)}."
    said = _counted_for(graph)
    return Table(columns, tuple(rows), f"{caption} {said}".strip(), words=("operator",), spare=("bytes of it", "operator"))


_SUMS: tuple[tuple[str, Callable[[Graph], str]], ...] = (
    ("all MACs", lambda graph: graph.macs_text),
    ("all parameters", lambda graph: format_count(graph.params)),
    ("bytes of the file", lambda graph: format_bytes(graph.bytes)),
)


def _macs_said(graph: Graph) -> str:
    if graph.is_exact:
        return f"{graph.macs_text} MACs of one input, counted on the exported graph"
    least = f"at least {format_count(graph.macs)} MACs of one input" if graph.macs else "MACs unknown"
    return f"{least}: {', '.join(graph.uncounted)} not counted"


def _counted_for(graph: Graph) -> str:
    """The sizes of the inputs that MACs are of."""
    if not graph.inputs:
        return ""
    said = ", ".join(f"{name} of {_sizes(shape)}" for name, shape in graph.inputs.items())
    is_free = any(shape is None or None in shape for shape in graph.inputs.values())
    hint = " Sizes that the file leaves free are given by --shape NAME=SIZES." if is_free and not graph.is_exact else ""
    return f"One input: {said}.{hint}"


def _sizes(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "unknown shape"
    return "×".join("?" if size is None else str(size) for size in shape) or "one number"


def _macs(node: Node) -> str:
    return "not counted" if node.macs is None else format_count(node.macs)


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """As docs/plans.md describes it."""
    return {**asdict(graph), **graph.figures}


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
        macs = (_macs(node) if node else "not there" for node in (old, new))
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
    """As docs/plans.md describes it."""
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
