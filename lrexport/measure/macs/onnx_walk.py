"""A walk through an ONNX graph in execution order: shapes, folded constants, branches, loops, functions, costs.

The body of a function is visited once per call, that of a loop once, and multiplied by its iterations. If the condition of
an If is known, only the branch that is taken counts.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lrexport.artifacts.onnx_graphs import domain_of, operator_of
from lrexport.errors import InputError
from lrexport.measure.macs.onnx_costs import Tally, costed
from lrexport.measure.macs.onnx_infer import Inference
from lrexport.measure.macs.onnx_inputs import SizedInputs
from lrexport.measure.macs.onnx_operators import Node, is_free, rule_of
from lrexport.measure.macs.onnx_values import Value, attributes_of, common, like, merged, of_data, of_sparse, of_tensor

# Nested calls of functions multiply: a small file can represent more nodes than can ever be visited.
_MOST_STEPS = 500_000
_MOST_DEPTH = 50
# The first pass shows which sizes of a state change, the second which others depend on them.
_PASSES = 3


@dataclass(frozen=True)
class _Scope:
    """A node's scope: values by name, declarations of the graph, attributes of the call."""

    values: MutableMapping[str, Value]
    declared: Mapping[str, Any]
    inference: Inference
    attributes: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 0

    def of(self, name: str) -> Value | None:
        """The value of a name; None for an omitted input."""
        return self.values.get(name, Value()) if name else None


class Walk:
    """One walk through a model; ``values`` are the main graph's after it. Raises InputError if the graph is too large."""

    def __init__(self, model: Any, inputs: SizedInputs) -> None:
        self.functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in model.functions}
        self._ir_version = model.ir_version
        self._steps = 0
        self._calls: dict[Any, tuple[list[Value], Tally]] = {}
        self._inferences: dict[tuple[tuple[str, int], ...], Inference] = {}
        self._symbols = inputs.symbols
        scope = _Scope({}, {}, self._inference(model.opset_import))
        given = [Value(inputs.types.get(item.name, item.type), inputs.values.get(item.name)) for item in model.graph.input]
        _outputs, self.tally, self.values = self._graph(model.graph, scope, given)

    def _inference(self, opset_import: Any) -> Inference:
        opsets = {domain_of(entry): entry.version for entry in opset_import}
        return self._inferences.setdefault(tuple(sorted(opsets.items())), Inference(opsets, self._ir_version))

    def _graph(
        self, graph: Any, outer: _Scope, given: Sequence[Value | None]
    ) -> tuple[list[Value], Tally, MutableMapping[str, Value]]:
        """Outputs, costs and values of a graph with ``given`` values for its first inputs."""
        if outer.depth > _MOST_DEPTH:
            raise InputError(f"the graph has more than {_MOST_DEPTH} levels of functions and branches")
        declared = {item.name: item.type for item in (*graph.value_info, *graph.output)}
        values: MutableMapping[str, Value] = ChainMap({}, outer.values)
        for item, value in zip(graph.input, given, strict=False):
            value = value or Value()
            is_known = value.shape is not None  # a loop may change declared sizes
            values[item.name] = value if is_known else merged(value, item.type, self._symbols)
        for tensor in graph.initializer:
            values[tensor.name] = of_tensor(tensor, tensor.name)
        for tensor in graph.sparse_initializer:
            values[tensor.values.name] = of_sparse(tensor)
        scope = replace(outer, values=values, declared=declared, depth=outer.depth + 1)
        tally = self._nodes(graph.node, scope)
        outputs = [values.get(item.name, Value(item.type)) for item in graph.output]
        return outputs, tally, values

    def _nodes(self, nodes: Any, scope: _Scope) -> Tally:
        tally = Tally()
        for node in nodes:
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise InputError(f"the graph has more than {_MOST_STEPS:,} nodes with its functions written out")
            node = _with_attributes(node, scope.attributes)
            outputs = self._node(node, scope, tally)
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    scope.values[name] = merged(value, scope.declared.get(name), self._symbols)
        return tally

    def _node(self, node: Any, scope: _Scope, tally: Tally) -> list[Value]:
        inputs = [scope.of(name) for name in node.input]
        domain = domain_of(node)
        function = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            return self._function(function, node, inputs, scope, tally)
        control = {"If": self._if, "Loop": self._loop, "Scan": self._scan, "SequenceMap": self._map}.get(node.op_type)
        if control is not None and domain == "":
            return control(node, inputs, scope, tally)
        outputs = scope.inference.outputs(node, inputs)
        known = zip(node.output, outputs, strict=False)
        outputs = [merged(value, scope.declared.get(name), self._symbols) for name, value in known]
        self._cost(node, inputs, outputs, scope, tally)
        return outputs

    def _cost(
        self, node: Any, inputs: Sequence[Value | None], outputs: Sequence[Value], scope: _Scope, tally: Tally
    ) -> None:
        if is_free(node):
            return
        rule = rule_of(node)
        if rule is None:
            weights = [value for value in inputs if value is not None and value.constant is not None]
            tally.leave_out(node, operator_of(node), weights)
            return
        seen = Node(node, inputs, outputs)
        held = [value for i in rule.weights if (value := seen.given(i)) is not None]
        if len(held) < len(rule.weights):
            tally.leave_out(node, f"{operator_of(node)} without a weight", held)
            return
        macs = rule.macs(seen, seen.attributes)
        if macs is None:
            tally.leave_out(node, f"{operator_of(node)} of unknown shape", held)
            return
        tally.nodes.append(costed(node, held, macs))

    def _function(
        self, function: Any, node: Any, inputs: Sequence[Value | None], scope: _Scope, tally: Tally
    ) -> list[Value]:
        if scope.depth > _MOST_DEPTH:
            raise InputError(f"the graph has more than {_MOST_DEPTH} levels of functions and branches")
        attributes = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
        values = {name: value for name, value in zip(function.input, inputs, strict=False) if value is not None}
        # Calls of the same function with the same inputs, as in repeated layers, are visited once.
        call = (id(function), tuple(map(_signature, inputs)), tuple(a.SerializeToString() for a in attributes.values()))
        if call not in self._calls:
            declared = {item.name: item.type for item in getattr(function, "value_info", ())}
            inference = self._inference(function.opset_import)
            inner = _Scope(values, declared, inference, attributes, scope.depth + 1)
            costs = self._nodes(function.node, inner)
            self._calls[call] = [values.get(name, Value()) for name in function.output], costs
        outputs, costs = self._calls[call]
        tally.add(costs, prefix=f"{node.name or node.op_type}/")
        return outputs

    def _if(self, node: Any, inputs: Sequence[Value | None], scope: _Scope, tally: Tally) -> list[Value]:
        branches = _graphs(node)
        names = ("then_branch", "else_branch")
        if any(name not in branches for name in names):
            tally.leave_out(node, "If without its branches")
            return []
        condition = _truth(inputs[0] if inputs else None)
        if condition is not None:
            outputs, costs, _ = self._graph(branches[names[not condition]], scope, [])
            tally.add(costs)
            return outputs
        (first, then, _), (second, otherwise, _) = (self._graph(branches[name], scope, []) for name in names)
        least = min(then, otherwise, key=lambda part: part.macs)
        tally.add(Tally(least.nodes, then.unknown + otherwise.unknown))
        if then.macs != otherwise.macs:
            tally.leave_out(node, f"If with branches of {then.macs:,} and {otherwise.macs:,} MACs")
        return [common(pair) for pair in zip(first, second, strict=False)]

    def _loop(self, node: Any, inputs: Sequence[Value | None], scope: _Scope, tally: Tally) -> list[Value]:
        body = _graphs(node).get("body")
        if body is None:
            tally.leave_out(node, "Loop without a body")
            return []
        given = [value.without_data() if value else None for value in inputs[2:]]
        condition = inputs[1] if len(inputs) > 1 else None
        begins = condition is None or _truth(condition) is True
        is_true = of_data(_array(True)) if begins else Value()
        counter = like(of_data(_array(0)), ())
        outputs, costs = self._settled(body, scope, [counter, is_true], given, [])
        trips = _whole(inputs[0] if inputs else None)
        # If the first iteration's condition makes the next one's true, all iterations run.
        if not begins or not outputs or _truth(outputs[0]) is not True:
            trips = 0 if _truth(condition) is False else None
        self._repeat(node, costs, trips, tally)
        count = len(inputs) - 2
        return [*outputs[1 : 1 + count], *(_stacked(value, trips) for value in outputs[1 + count :])]

    def _settled(
        self,
        body: Any,
        scope: _Scope,
        before: Sequence[Value | None],
        states: list[Value | None],
        after: Sequence[Value | None],
    ) -> tuple[list[Value], Tally]:
        """A body's outputs and costs with states of constant shape: sizes that an iteration changes are unknown.

        ``before`` and ``after`` are the body's inputs around its states; a Loop's first output is its condition.
        """
        first = 1 if before else 0
        for _ in range(_PASSES):
            outputs, costs, _values = self._graph(body, scope, [*before, *states, *after])
            kept = [
                common([old, new.without_data()]) if old is not None else None
                for old, new in zip(states, outputs[first:], strict=False)
            ]
            kept += states[len(kept) :]
            if [value and value.shape for value in kept] == [value and value.shape for value in states]:
                break
            states = kept
        return outputs, costs

    def _scan(self, node: Any, inputs: Sequence[Value | None], scope: _Scope, tally: Tally) -> list[Value]:
        body = _graphs(node).get("body")
        attributes = attributes_of(node)
        count = attributes.get("num_scan_inputs", 0)
        if body is None or not 0 < count <= len(inputs) or scope.inference.opsets.get("", 1) < 9:
            tally.leave_out(node, "Scan")  # before opset 9 inputs have a batch and lengths
            return []
        given = [value.without_data() if value else None for value in inputs[:-count]]
        axes = attributes.get("scan_input_axes") or [0] * count
        scanned = [value or Value() for value in inputs[-count:]]
        steps = {_size(value, axis) for value, axis in zip(scanned, axes, strict=False)}
        slices = [like(value, _without(value, axis)) for value, axis in zip(scanned, axes, strict=False)]
        outputs, costs = self._settled(body, scope, [], given, slices)
        trips = steps.pop() if len(steps) == 1 else None
        self._repeat(node, costs, trips, tally)
        made = attributes.get("scan_output_axes") or [0] * len(outputs)
        ends = [_stacked(value, trips, axis) for value, axis in zip(outputs[len(given) :], made, strict=False)]
        return [*outputs[: len(given)], *ends]

    def _map(self, node: Any, inputs: Sequence[Value | None], scope: _Scope, tally: Tally) -> list[Value]:
        body = _graphs(node).get("body")
        if body is not None:
            _outputs, costs, _values = self._graph(body, scope, [])
            self._repeat(node, costs, None, tally)
        return []

    def _repeat(self, node: Any, costs: Tally, trips: int | None, tally: Tally) -> None:
        if trips is not None:
            tally.add(costs, trips)
        elif costs.nodes or costs.unknown:
            tally.unknown += costs.unknown
            tally.leave_out(node, f"{node.op_type} of unknown length")


def _signature(value: Value | None) -> Any:
    """A key for an input of a call."""
    if value is None:
        return None
    kind = None if value.type is None else value.type.SerializeToString()
    data = None if value.data is None else (value.data.dtype.str, value.data.tobytes())
    return kind, data, value.constant


def _with_attributes(node: Any, attributes: Mapping[str, Any]) -> Any:
    """The node with references to the call's attributes replaced by them."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return node
    resolved = type(node)()
    resolved.CopyFrom(node)
    del resolved.attribute[:]
    for attribute in node.attribute:
        source = attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if source is not None:
            added = resolved.attribute.add()
            added.CopyFrom(source)
            added.name = attribute.name
    return resolved


def _graphs(node: Any) -> dict[str, Any]:
    return {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}


def _array(value: object) -> Any:
    import numpy as np

    return np.array(value)


def _truth(value: Value | None) -> bool | None:
    """A condition if it is known before the graph runs, else None."""
    return bool(value.data.reshape(-1)[0]) if value is not None and value.data is not None and value.data.size == 1 else None


def _whole(value: Value | None) -> int | None:
    """A number if it is known before the graph runs, else None."""
    is_known = value is not None and value.data is not None and value.data.size == 1
    return max(int(value.data.reshape(-1)[0]), 0) if value is not None and is_known else None


def _size(value: Value, axis: int) -> int | None:
    shape = value.shape
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def _without(value: Value, axis: int) -> tuple[int | None, ...] | None:
    shape = value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _stacked(value: Value, count: int | None, axis: int = 0) -> Value:
    shape = value.shape
    if shape is None:
        return like(value, None)
    axis = axis if axis >= 0 else axis + len(shape) + 1
    return like(value, (*shape[:axis], count, *shape[axis:]))
