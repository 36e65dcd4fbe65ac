"""Repair, in memory, ONNX files that onnx's checker refuses but ONNX Runtime runs; each fault is returned as text.

Only faults that every runtime tolerates are repaired, so the graph computes the same numbers afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, all_graphs, domain_of, graphs_in, opset_of

if TYPE_CHECKING:
    import onnx

# The IR version from which an initializer need not be an input.
_FIRST_FREE_INITIALIZERS = 4
# Domains whose operators ONNX Runtime accepts without an import, and their versions.
_RUNTIME_DOMAINS = {MICROSOFT: 1, "ai.onnx.ml": 3}
# Operators of ONNX Runtime in the standard domain, some of them only until the standard had them.
_RUNTIME_OPERATORS = (
    *("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "LayerNormalization"),
    *("MeanVarianceNormalization", "ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization"),
    "ThresholdedRelu",
)


def repair(model: onnx.ModelProto) -> list[str]:
    """Repair ``model`` in place; the faults as text, none if nothing could be repaired."""
    repairs = (_name, _version, _initializers, _imports, _order, _shadowing)
    return [fault for repair_faults in repairs for fault in repair_faults(model)]


def _name(model: onnx.ModelProto) -> Iterator[str]:
    if not model.graph.name:
        model.graph.name = "graph"
        yield "the graph has no name"


def _version(model: onnx.ModelProto) -> Iterator[str]:
    given = {item.name for item in model.graph.input}
    if 0 < model.ir_version < _FIRST_FREE_INITIALIZERS and any(t.name not in given for t in model.graph.initializer):
        yield f"its weights are not inputs, which IR version {model.ir_version} requires"
        model.ir_version = _FIRST_FREE_INITIALIZERS


def _initializers(model: onnx.ModelProto) -> Iterator[str]:
    initializers = model.graph.initializer
    last = {tensor.name: index for index, tensor in enumerate(initializers)}
    superfluous = [i for i, tensor in enumerate(initializers) if not tensor.name or last[tensor.name] != i]
    for index in reversed(superfluous):
        del initializers[index]
    if superfluous:
        yield f"{len(superfluous)} of its weights have no name or a duplicate name"


def _imports(model: onnx.ModelProto) -> Iterator[str]:
    imported = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in all_graphs([model.graph]) for node in graph.node}
    for domain in sorted((used - imported) & _RUNTIME_DOMAINS.keys()):
        entry = model.opset_import.add()
        entry.domain, entry.version = domain, _RUNTIME_DOMAINS[domain]
        yield f"the version of {domain} is missing"


def _order(model: onnx.ModelProto) -> Iterator[str]:
    """Sort nodes into an order in which they can run; a cycle is left for the checker to report."""
    graph = model.graph
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits_for = [{made_by[name] for name in _read(node) if name in made_by} for node in graph.node]
    if all(other < index for index, others in enumerate(waits_for) for other in others):
        return
    order = _topological(waits_for)
    if len(order) < len(waits_for):
        return
    nodes = [graph.node[index] for index in order]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    yield "its nodes are not in the order in which they run"


def _topological(waits_for: list[set[int]]) -> list[int]:
    """Indices, each after those it waits for, otherwise in their old order; those of a cycle are left out."""
    import heapq

    waiting = [len(others) for others in waits_for]
    users: list[list[int]] = [[] for _ in waits_for]
    for index, others in enumerate(waits_for):
        for other in others:
            users[other].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    return order


def _read(node: Any) -> Iterator[str]:
    """Names that a node and its inner graphs read."""
    yield from (name for name in node.input if name)
    for graph in graphs_in(node):
        for inner in graph.node:
            yield from _read(inner)
        yield from (item.name for item in graph.output)


def _shadowing(model: onnx.ModelProto) -> Iterator[str]:
    """Rename values in branches and loops that have the names of values outside."""
    taken = {item.name for item in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    taken |= {name for node in model.graph.node for name in node.output}
    count = 0
    for graph in all_graphs([model.graph]):
        if graph is model.graph:
            continue
        made = {name for node in graph.node for name in node.output if name}
        new = {name: f"{name}/inside{count + i}" for i, name in enumerate(sorted(made & taken))}
        if new:
            _rename(graph, new)
            count += len(new)
    if count:
        yield f"{count} names in branches or loops are also names outside of them"


def _rename(graph: Any, new: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for inner in graphs_in(node):
            own = {name for other in inner.node for name in other.output} | {item.name for item in inner.input}
            _rename(inner, {old: name for old, name in new.items() if old not in own})
    for item in (*graph.output, *graph.value_info):
        item.name = new.get(item.name, item.name)


@contextmanager
def allowances(model: onnx.ModelProto) -> Iterator[list[str]]:
    """Inside the block, change the model so that the checker accepts it; afterwards undo the changes.

    Yields the faults as text.
    """
    faults: list[str] = []
    undo: list[Callable[[], object]] = []
    for allow in (_types, _operators, _opsets_of_functions):
        allow(model, faults, undo)
    try:
        yield faults
    finally:
        for restore in reversed(undo):
            restore()


def _types(model: onnx.ModelProto, faults: list[str], undo: list[Callable[[], object]]) -> None:
    """Inputs and outputs without a type or a shape, which runtimes infer."""
    from onnx import TensorProto

    for item in (*model.graph.input, *model.graph.output):
        if not item.HasField("type") or item.type.WhichOneof("value") is None:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
            item.type.tensor_type.shape.SetInParent()
            undo.append(partial(item.ClearField, "type"))
        elif item.type.HasField("tensor_type") and not item.type.tensor_type.HasField("shape"):
            item.type.tensor_type.shape.SetInParent()
            undo.append(partial(item.type.tensor_type.ClearField, "shape"))
        else:
            continue
        faults.append(f"{item.name} has no shape")


def _operators(model: onnx.ModelProto, faults: list[str], undo: list[Callable[[], object]]) -> None:
    """Move operators of ONNX Runtime from the standard domain to its own."""
    import onnx

    opset = opset_of(model) or 1
    names = set()
    for node in (node for graph in all_graphs([model.graph]) for node in graph.node):
        if node.op_type in _RUNTIME_OPERATORS and domain_of(node) == "" and not onnx.defs.has(node.op_type, opset):
            names.add(node.op_type)
            has_domain = node.HasField("domain")
            undo.append(partial(setattr, node, "domain", node.domain) if has_domain else partial(node.ClearField, "domain"))
            node.domain = MICROSOFT
    if names:
        faults.append(f"only ONNX Runtime has the operators {', '.join(sorted(names))}, not ONNX opset {opset}")
        if not any(entry.domain == MICROSOFT for entry in model.opset_import):
            entry = model.opset_import.add()
            entry.domain, entry.version = MICROSOFT, 1
            undo.append(partial(model.opset_import.pop, -1))


def _opsets_of_functions(model: onnx.ModelProto, faults: list[str], undo: list[Callable[[], object]]) -> None:
    """Functions with another opset than the graph, of which the checker allows only one."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            version = versions.get(entry.domain)
            if version is not None and version != entry.version:
                faults.append(f"its function {function.name} has opset {entry.version}, but the graph {version}")
                undo.append(partial(setattr, entry, "version", entry.version))
                entry.version = version
