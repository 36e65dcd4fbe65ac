"""How large a graph becomes when the functions of its file are inlined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lrexport.artifacts.onnx_graphs import graphs_in

if TYPE_CHECKING:
    import onnx

# Nodes that calls of functions may add. Exporters' functions add thousands; a chain of ten functions that each call the
# next ten times adds ten billion.
MOST_ADDED_NODES = 250_000

_Key = tuple[str, str, str]


def check_expansion(model: onnx.ModelProto) -> None:
    """Raise ValueError if calls of the file's functions expand to more nodes than any exporter writes.

    onnx's checker and shape inference follow every call, so they must not get such a file.
    """
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    if not functions:
        return
    sizes: dict[_Key, int] = {}
    added = sum(_expanded(key, functions, sizes) for key in _calls(model.graph.node, functions))
    if added > MOST_ADDED_NODES:
        raise ValueError(f"its functions expand to {_shown(added)} nodes; expected at most {MOST_ADDED_NODES:,}")


def _expanded(start: _Key, functions: dict[_Key, Any], sizes: dict[_Key, int]) -> int:
    """Nodes of one call, with those of inner calls. Raises ValueError for functions that call themselves."""
    # Without recursion, because a chain of thousands of functions would exhaust Python's stack.
    waiting, under_way = [start], set[_Key]()
    while waiting:
        key = waiting[-1]
        if key in sizes:
            waiting.pop()
            continue
        body = functions[key].node
        inner = list(_calls(body, functions))
        absent = [call for call in inner if call not in sizes]
        if not absent:
            own = sum(1 for _ in _nodes(body))
            sizes[key] = own + sum(sizes[call] for call in inner)
            under_way.discard(key)
            waiting.pop()
            continue
        under_way.add(key)
        again = next((call for call in absent if call in under_way), None)
        if again is not None:
            raise ValueError(f"its function {again[0]}.{again[1]} calls itself")
        waiting += dict.fromkeys(absent)
    return sizes[start]


def _calls(nodes: Any, functions: dict[_Key, Any]) -> Iterator[_Key]:
    """The functions that nodes, and nodes in their inner graphs, call; once for each call."""
    for node in _nodes(nodes):
        key = (node.domain, node.op_type, node.overload)
        if key in functions:
            yield key


def _nodes(nodes: Any) -> Iterator[Any]:
    """The nodes and those in their inner graphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in graphs_in(node):
            waiting += graph.node


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "more than 10^15"
