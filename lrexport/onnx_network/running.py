"""Run the steps of a graph: layers as modules, operators in torch where they can be, the rest in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from onnx import TensorProto
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.onnx_network.body import Address, Body, Step
from lrexport.onnx_network.layers import Layer
from lrexport.onnx_network.operators.convolutions import pad_zeros, pads_of
from lrexport.onnx_network.operators.facts import NotCoveredError
from lrexport.onnx_network.runtime_groups import RuntimeGroup
from lrexport.onnx_network.source import SourceModel
from lrexport.text import first_line

_Find = Callable[[str], nn.Module]
# Called with each value of a run by name; what it returns, if anything, takes the value's place.
Watch = Callable[[str, Tensor], Tensor | None]


class NodeError(InputError):
    """A node failed that torch runs; ``address`` is its place."""

    def __init__(self, address: Address, message: str) -> None:
        super().__init__(message)
        self.address = address


@dataclass
class Program:
    """A body as it is run: its steps, neighbouring ones without an implementation as one group.

    ``dies[i]`` are the values that nothing needs after item i.
    """

    body: Body
    items: list[Step | RuntimeGroup]
    dies: list[tuple[str, ...]] = field(default_factory=list)
    branches: dict[Address, tuple[Program, Program]] = field(default_factory=dict)

    def __deepcopy__(self, memo: object) -> Program:
        return self

    def groups(self) -> list[RuntimeGroup]:
        """All groups, also those of branches."""
        own = [item for item in self.items if isinstance(item, RuntimeGroup)]
        return own + [group for pair in self.branches.values() for program in pair for group in program.groups()]


class Planner:
    """Makes the programs of a model. ``in_runtime`` are nodes to run in ONNX Runtime although torch has their operators."""

    def __init__(
        self,
        source: SourceModel,
        layers: Mapping[Address, Layer],
        types: Mapping[str, int],
        in_runtime: Collection[Address],
    ) -> None:
        self._source, self._layers, self._types, self._in_runtime = source, layers, types, in_runtime

    def program(self, body: Body) -> Program:
        """The program of a body."""
        program = Program(body, [])
        waiting: list[Step] = []

        def close() -> None:
            if waiting:
                program.items.append(RuntimeGroup(self._source, waiting, body, self._taken(body, waiting), self._types))
                waiting.clear()

        for step in body.steps:
            if self._in_torch(step):
                close()
                program.items.append(step)
                if step.branches is not None:
                    program.branches[step.address] = (self.program(step.branches[0]), self.program(step.branches[1]))
            else:
                waiting.append(step)
        close()
        last: dict[str, int] = {}
        for number, item in enumerate(program.items):
            for name in needs_of(item):
                last[name] = number
            for name in item.makes:
                last.setdefault(name, number)
        program.dies = [() for _ in program.items]
        for name, number in last.items():
            if name not in body.outputs:
                program.dies[number] = (*program.dies[number], name)
        return program

    def _in_torch(self, step: Step) -> bool:
        if step.address in self._in_runtime:
            return False
        return step.address in self._layers or step.operator is not None or step.branches is not None

    def _taken(self, body: Body, group: Sequence[Step]) -> list[str]:
        """What other steps, or the outputs, take from a group."""
        inside = {id(step) for step in group}
        wanted = set(body.outputs)
        for step in body.steps:
            if id(step) not in inside:
                wanted |= {*step.needs, *step.captured}
        made = [name for step in group for name in step.makes if name]
        return [name for name in made if name in wanted] or made[:1]


def needs_of(item: Step | RuntimeGroup) -> tuple[str, ...]:
    """The values that an item takes, in the graphs inside it too."""
    return (*item.needs, *item.captured) if isinstance(item, Step) else item.needs


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def blocking(program: Program, layers: Collection[Address], types: Mapping[str, int]) -> tuple[str, ...]:
    """Operators in ONNX Runtime between the layers and the outputs, which no gradient passes; integers have none anyway."""
    after: set[str] = set()  # values that depend on a layer
    lost: dict[str, frozenset[str]] = {}
    for item in program.items:
        needs = set(needs_of(item))
        inner = program.branches.get(item.address, ()) if isinstance(item, Step) else ()
        groups = [item] if isinstance(item, RuntimeGroup) else [group for each in inner for group in each.groups()]
        has_layer = isinstance(item, Step) and _has_layer(item, inner, layers)
        operators = frozenset[str]().union(*(lost[name] for name in needs if name in lost))
        if has_layer or needs & after:
            operators = operators.union(*(group.operators for group in groups))
            after |= set(item.makes)
        if operators:
            lost |= {name: operators for name in item.makes if types.get(name, TensorProto.FLOAT) in _FLOATS}
    return tuple(sorted(frozenset[str]().union(*(lost.get(name, frozenset()) for name in program.body.outputs))))


def _has_layer(step: Step, inner: Sequence[Program], layers: Collection[Address]) -> bool:
    """Whether a step is a layer, or has one in its branches."""
    steps = (each for program in inner for body in program.body.all() for each in body.steps)
    return step.address in layers or any(each.address in layers for each in steps)


class Run:
    """One run of a network's graph. ``constant`` finds its tensors by body and name, ``watch`` is called with each value.

    With the ``precision`` float64, for comparisons, whatever the graph makes in float32 is float64 too.
    """

    def __init__(
        self,
        find: _Find,
        layers: Mapping[Address, Layer],
        constant: Callable[[Body, str], Tensor | None],
        make_group: Callable[[Step, Body], RuntimeGroup],
        watch: Watch | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._find, self._layers, self._constant = find, layers, constant
        self._make_group, self._watch, self._is_double = make_group, watch, precision == torch.float64

    def outputs(self, program: Program, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of a program for its inputs, or for the values around it. Raises InputError naming the node."""
        values = dict(given)
        for item, dying in zip(program.items, program.dies, strict=True):
            if isinstance(item, RuntimeGroup):
                made: Mapping[str, Tensor] = item.run(self._gathered(item.needs, values, program.body))
            else:
                made = self._step(item, values, program)
            for name, value in made.items():
                if name:
                    value = value.double() if self._is_double and value.dtype == torch.float32 else value
                    other = None if self._watch is None else self._watch(name, value)
                    values[name] = value if other is None else other
            if self._watch is None:
                for name in dying:
                    values.pop(name, None)
        return [self._value(name, values, program.body) for name in program.body.outputs]

    def _value(self, name: str, values: Mapping[str, Tensor], body: Body) -> Tensor:
        value = values.get(name)
        value = self._constant(body, name) if value is None else value
        if value is None:
            raise InputError(f"value {name!r} of the graph is made by no node before it is used")
        return value

    def _gathered(self, names: Sequence[str], values: Mapping[str, Tensor], body: Body) -> dict[str, Tensor]:
        return {name: self._value(name, values, body) for name in names}

    def _step(self, step: Step, values: Mapping[str, Tensor], program: Program) -> dict[str, Tensor]:
        layer = self._layers.get(step.address)
        body = program.body
        if layer is not None:
            value = self._layer(layer, step, self._value(step.needs[1 if layer.form.left else 0], values, body))
            if layer.form.added is not None:
                value = value + layer.form.times * self._value(layer.form.added, values, body)
            return {step.makes[0]: value}
        if step.branches is not None:
            chosen = bool(self._value(step.needs[0], values, body).reshape(()))
            branch = program.branches[step.address][0 if chosen else 1]
            return dict(zip(step.makes, self.outputs(branch, values), strict=False))
        inputs = [self._value(name, values, body) if name else None for name in step.needs]
        assert step.operator is not None
        try:
            return dict(zip(step.makes, step.operator(inputs), strict=False))
        except NotCoveredError:
            group = self._make_group(step, body)
            return dict(group.run(self._gathered(group.needs, values, body)))
        except Exception as error:
            kind, name = step.facts.operator, step.node.name or step.makes[0]
            raise NodeError(step.address, f"{kind} {name!r} of the graph: {first_line(error)}") from error

    def _layer(self, layer: Layer, step: Step, value: Tensor) -> Tensor:
        module, form = self._find(layer.path), layer.form
        if form.padded:
            kernel, ones = step.facts.get("kernel_shape"), [1] * (value.ndim - 2)
            kernel = kernel if kernel is not None else _kernel(module)
            strides, dilations = step.facts.get("strides") or ones, step.facts.get("dilations") or ones
            value = pad_zeros(value, pads_of(step.facts, value.shape[2:], kernel, strides, dilations))
        # A product with a vector is the same from either side.
        turns_back = form.left and value.ndim > 1
        made: Tensor = module(value.mT if turns_back is not form.turned else value)
        for axis, (before, after) in enumerate(form.cut):
            made = made.narrow(2 + axis, before, made.shape[2 + axis] - before - after)
        return made.mT if turns_back else made


def _kernel(module: nn.Module) -> list[int]:
    """The kernel of a convolution, or of the two halves of a pair together."""
    halves = [half for half in module.modules() if hasattr(half, "kernel_size")]
    return [max(lengths) for lengths in zip(*(half.kernel_size for half in halves), strict=True)]
