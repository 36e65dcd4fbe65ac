"""Files that onnx's checker refuses and ONNX Runtime runs: repaired in memory, each repair in words.

Only what every runtime is lenient about is repaired: no number that the graph computes is another one afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, all_graphs, domain_of, graphs_in, opset_of

if TYPE_CHECKING:
    import onnx

# From this version on an initializer need not be listed among the inputs.
_FIRST_FREE_INITIALIZERS = 4
# Domains whose operators ONNX Runtime has without an import, and their version.
_RUNTIME_DOMAINS = {MICROSOFT: 1, "ai.onnx.ml": 3}
# Operators of ONNX Runtime's own that stand in the standard domain, some of them until the standard had them.
_RUNTIME_OPERATORS = (
    *("Affine", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler", "LayerNormalization"),
    *("MeanVarianceNormalization", "ParametricSoftplus", "Scale", "ScaledTanh", "SimplifiedLayerNormalization"),
    "ThresholdedRelu",
)


def repair(model: onnx.ModelProto) -> list[str]:
    """Mend ``model`` in place; what was done, in words. Empty where nothing was found that could be mended."""
    repairs = (_name, _version, _initializers, _imports, _order, _shadowing)
    return [said for mend in repairs for said in mend(model)]


def _name(model: onnx.ModelProto) -> Iterator[str]:
    if not model.graph.name:
        model.graph.name = "graph"
        yield "the graph has no name"


def _version(model: onnx.ModelProto) -> Iterator[str]:
    given = {item.name for item in model.graph.input}
    if 0 < model.ir_version < _FIRST_FREE_INITIALIZERS and any(t.name not in given for t in model.graph.initializer):
        yield f"weights are not listed as inputs, which IR version {model.ir_version} asks for"
        model.ir_version = _FIRST_FREE_INITIALIZERS


def _initializers(model: onnx.ModelProto) -> Iterator[str]:
    initializers = model.graph.initializer
    last = {tensor.name: index for index, tensor in enumerate(initializers)}
    superfluous = [i for i, tensor in enumerate(initializers) if not tensor.name or last[tensor.name] != i]
    for index in reversed(superfluous):
        del initializers[index]
    if superfluous:
        yield f"{len(superfluous)} of its weights have no name, or the name of a later one"


def _imports(model: onnx.ModelProto) -> Iterator[str]:
    imported = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in all_graphs([model.graph]) for node in graph.node}
    for domain in sorted((used - imported) & _RUNTIME_DOMAINS.keys()):
        entry = model.opset_import.add()
        entry.domain, entry.version = domain, _RUNTIME_DOMAINS[domain]
        yield f"the version of {domain} is not said"


def _order(model: onnx.ModelProto) -> Iterator[str]:
    """Nodes in the order in which they can run; a cycle stays as it is, for the checker to name."""
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
    """Indices, each after those it waits for and otherwise as they were; those of a cycle are left out."""
    import heapq

    open_for = [len(others) for others in waits_for]
    users: list[list[int]] = [[] for _ in waits_for]
    for index, others in enumerate(waits_for):
        for other in others:
            users[other].append(index)
    ready = [index for index, count in enumerate(open_for) if count == 0]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            open_for[user] -= 1
            if open_for[user] == 0:
                heapq.heappush(ready, user)
    return order


def _read(node: Any) -> Iterator[str]:
    """Names that a node reads, those that graphs inside of it read included."""
    yield from (name for name in node.input if name)
    for graph in graphs_in(node):
        for inner in graph.node:
            yield from _read(inner)
        yield from (item.name for item in graph.output)


def _shadowing(model: onnx.ModelProto) -> Iterator[str]:
    """Names inside of branches that are those of values outside get names of their own."""
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
        yield f"{count} names inside of branches or loops are those of values outside"


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
    """The model as the checker takes it, while the context lasts: what it misses stands in, and goes again afterwards.

    Yields in words what stands in.
    """
    said: list[str] = []
    undo: list[Callable[[], object]] = []
    for allow in (_types, _operators, _opsets_of_functions):
        allow(model, said, undo)
    try:
        yield said
    finally:
        for restore in reversed(undo):
            restore()


def _types(model: onnx.ModelProto, said: list[str], undo: list[Callable[[], object]]) -> None:
    """Inputs and outputs without a type or a shape: runtimes find it out."""
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
        said.append(f"{item.name} has no shape")


def _operators(model: onnx.ModelProto, said: list[str], undo: list[Callable[[], object]]) -> None:
    """Operators of ONNX Runtime's own in the standard domain stand in another one."""
    import onnx

    opset = opset_of(model) or 1
    names = set()
    for node in (node for graph in all_graphs([model.graph]) for node in graph.node):
        if node.op_type in _RUNTIME_OPERATORS and domain_of(node) == "" and not onnx.defs.has(node.op_type, opset):
            names.add(node.op_type)
            said_before = node.HasField("domain")
            undo.append(partial(setattr, node, "domain", node.domain) if said_before else partial(node.ClearField, "domain"))
            node.domain = MICROSOFT
    if names:
        said.append(f"{', '.join(sorted(names))}: ONNX has no such operator at opset {opset}, ONNX Runtime has")
        if not any(entry.domain == MICROSOFT for entry in model.opset_import):
            entry = model.opset_import.add()
            entry.domain, entry.version = MICROSOFT, 1
            undo.append(partial(model.opset_import.pop, -1))


def _opsets_of_functions(model: onnx.ModelProto, said: list[str], undo: list[Callable[[], object]]) -> None:
    """Functions of another opset than the graph's; the checker wants one for all."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        for entry in function.opset_import:
            wanted = versions.get(entry.domain)
            if wanted is not None and wanted != entry.version:
                said.append(f"its function {function.name} is of opset {entry.version}, the graph of {wanted}")
                undo.append(partial(setattr, entry, "version", entry.version))
                entry.version = wanted
