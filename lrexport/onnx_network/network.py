"""An ONNX file as a torch network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrexport.artifacts.onnx_graphs import bodies, graphs_in
from lrexport.errors import InputError
from lrexport.onnx_network import layers as kinds
from lrexport.onnx_network.body import Address, Body, Step, body_of, types_and_shapes_of
from lrexport.onnx_network.inputs import FileInput
from lrexport.onnx_network.layers import Layer
from lrexport.onnx_network.operators.facts import type_of, with_numbers
from lrexport.onnx_network.running import Planner, Run, Watch, blocking
from lrexport.onnx_network.runtime_groups import RuntimeGroup
from lrexport.onnx_network.source import SourceModel
from lrexport.signature import Signature

_MOST_KNOWN = 64  # values of a constant: axes, sizes, limits
_CLOSE, _CLOSE_ROUNDED = 1e-4, 2e-2
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")


class OnnxNetwork(nn.Module):
    """The network of an ONNX file: convolutions and products with constant weights are its modules, by their names.

    Its forward runs the file's graph, with whatever stands in the places of these modules: gradients reach what comes
    before operators that run in torch. ``forward`` takes the file's inputs in their order, (B, …) each, and returns its
    output, or a dict of several by name. It computes in the precision of its weights, float32 by default. An input whose
    first axis is not the batch, such as a recurrent state, gets one here, and the file then runs sample by sample.
    ``graph_reasons`` are layers that stay in the graph, and why.
    """

    def __init__(
        self, source: SourceModel, inputs: Sequence[FileInput], in_runtime: Collection[Address] = frozenset()
    ) -> None:
        """``in_runtime`` are nodes that ONNX Runtime runs, although torch has their operators.

        Float32 weights are those of ``source`` in memory: only copies of the network may be trained.
        """
        super().__init__()
        model = source.light
        self._file = _Shared(source)
        self._inputs = tuple(inputs)
        self._one_by_one = any(each.is_whole for each in inputs)
        self._in_runtime = frozenset(in_runtime)
        self._outputs = tuple(item.name for item in model.graph.output)
        self._output_types = {item.name: item.type.tensor_type.elem_type for item in model.graph.output}
        self._types, shapes = types_and_shapes_of(model)
        body = body_of(source, shapes)
        self._layers: dict[Address, Layer] = {}
        self.graph_reasons: dict[str, str] = {}
        self._buffer_names: dict[tuple[int, str], str] = {}
        self._known: dict[str, list[Any]] = {}
        self._find_layers(body)
        self._bodies = _Shared(list(body.all()))
        self._numbers = {id(each): number for number, each in enumerate(self._bodies.value)}
        self._keep_constants()
        self._late = _Shared({})
        self._program = self._planner().program(body)

    @property
    def portion(self) -> int | None:
        """Samples in one run of the file; None for any number."""
        fixed = next((each.batch for each in self._inputs if each.batch is not None), None)
        return 1 if self._one_by_one and fixed is None else fixed

    def one_by_one(self) -> None:
        """Run the file for each sample separately."""
        self._one_by_one = True

    def _planner(self) -> Planner:
        return Planner(self._file.value, self._layers, self._types, self._in_runtime)

    @property
    def signature(self) -> Signature:
        """What the network takes."""
        return Signature(tuple(each.spec for each in self._inputs))

    @property
    def inputs(self) -> tuple[FileInput, ...]:
        """The inputs as the file has them."""
        return self._inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the file's outputs."""
        return self._outputs

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The nodes that are modules, in the order of the graph."""
        return tuple(self._layers.values())

    @property
    def source(self) -> onnx.ModelProto:
        """The file's model without its large values, not to be changed."""
        return self.file.light

    @property
    def file(self) -> SourceModel:
        """The file's model and its values."""
        source: SourceModel = self._file.value
        return source

    @property
    def body(self) -> Body:
        """The steps of the whole graph."""
        return self._program.body

    @property
    def without_gradient(self) -> tuple[str, ...]:
        """The operators that run in ONNX Runtime, which no gradient passes."""
        return tuple(sorted({name for group in self._program.groups() for name in group.operators}))

    @property
    def untrainable(self) -> str | None:
        """Why gradients of the outputs do not reach the layers in full; None if they do."""
        operators = blocking(self._program, self._layers, self._types)
        if not operators:
            return None
        return f"{', '.join(operators)} between its layers and outputs run in ONNX Runtime, which has no gradients"

    @property
    def tolerance(self) -> float:
        """How far results in torch and in ONNX Runtime may be apart, as a share of the largest value.

        Sums in another order differ by 1e-6 and half precision by 1e-3. Where the file rounds values to integers, such a
        difference can decide between two of them.
        """
        rounds = any(node.op_type in _ROUNDING for body in bodies(self.source) for node in body.node)
        return _CLOSE_ROUNDED if rounds or any(kind in _HALVES for kind in self._types.values()) else _CLOSE

    @property
    def types(self) -> Mapping[str, int]:
        """ONNX element types of the file's values, as far as known."""
        return self._types

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """The file's outputs for inputs (B, …) in its order."""
        if len(inputs) != len(self._inputs):
            names = ", ".join(each.name for each in self._inputs)
            raise InputError(f"the file takes {len(self._inputs)} inputs ({names}), not {len(inputs)}")
        portions = self._portions(inputs)
        parts = [self.run(dict(zip((each.name for each in self._inputs), portion, strict=True))) for portion in portions]
        size = self.portion
        outputs = parts[0] if size is None else _joined(parts, size, len(inputs[0]))
        return outputs[self._outputs[0]] if len(self._outputs) == 1 else outputs

    def _portions(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        """The inputs as the file takes them, a portion a run."""
        size = self.portion
        if size is None:
            return [list(inputs)]
        portions = []
        for start in range(0, len(inputs[0]), size):
            portion = []
            for each, tensor in zip(self._inputs, inputs, strict=True):
                part = tensor[start : start + size]
                if len(part) < size:
                    part = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
                portion.append(part[0] if each.is_whole else part)
            portions.append(portion)
        return portions

    def run(self, given: Mapping[str, Tensor], watch: Watch | None = None) -> dict[str, Tensor]:
        """The file's outputs by name for its inputs by name, as the file takes them."""
        precision = self.get_buffer("_precision").dtype
        values = {name: _in(value, precision) for name, value in given.items()}
        run = Run(self.get_submodule, self._layers, self._constant, self._late_group, watch, precision)
        outputs = run.outputs(self._program, values)
        return {name: self._as_declared(name, value) for name, value in zip(self._outputs, outputs, strict=True)}

    def _as_declared(self, name: str, value: Tensor) -> Tensor:
        declared = type_of(self._output_types.get(name, 0))
        if declared is None or declared == value.dtype or (value.is_floating_point() and value.dtype != torch.float32):
            return value
        return value.to(declared) if declared != torch.bfloat16 else value

    def _late_group(self, step: Step, body: Body) -> RuntimeGroup:
        late: dict[Address, RuntimeGroup] = self._late.value
        if step.address not in late:
            made = [name for name in step.makes if name]
            late[step.address] = RuntimeGroup(self._file.value, [step], body, made, self._types)
        return late[step.address]

    def _find_layers(self, body: Body) -> None:
        own = (name for name in dir(self) if not isinstance(getattr(type(self), name, None), property))
        taken: dict[str, bool] = dict.fromkeys(own, False)
        shared: dict[str, nn.Parameter] = {}

        def share(name: str, value: Tensor) -> nn.Parameter:
            if name not in shared:
                shared[name] = nn.Parameter(value.contiguous())
            return shared[name]

        for inner in body.all():
            for step in inner.steps:
                made = kinds.module_of(step, inner, share)
                if made is not None and step.address in self._in_runtime:
                    made = "ONNX Runtime computes something else than torch"
                if made is None:
                    continue
                if isinstance(made, str):
                    self.graph_reasons[kinds.path_of(step, "", taken)] = made
                    continue
                origin = inner.origin(made.weight)
                path = kinds.path_of(step, origin, taken)
                self._put(path, made.module)
                self._layers[step.address] = Layer(
                    path, step.facts.operator, step.address, made.form, made.weight, made.bias, origin
                )
            for step in inner.steps:
                self._layers_inside(step, taken)

    def _layers_inside(self, step: Step, taken: dict[str, bool]) -> None:
        """Note the layers in loops and functions, which stay as they are."""
        functions = {(function.domain, function.name): function for function in self.source.functions}
        function = functions.get((step.node.domain, step.node.op_type))
        if function is not None:
            inside, where = [function], f"a function, {step.node.op_type}"
        elif step.branches is None:
            inside, where = graphs_in(step.node), f"the body of {step.facts.operator}"
        else:
            return
        for node in kinds.layers_in(inside):
            name = node.name or node.output[0]
            while name in taken:
                name += "_"
            taken[name] = True
            self.graph_reasons[name] = f"it is in {where}"

    def _put(self, path: str, module: nn.Module) -> None:
        around, _, name = path.rpartition(".")
        parent: nn.Module = self
        for part in filter(None, around.split(".")):
            inner = parent._modules.get(part)
            if inner is None:
                inner = parent._modules[part] = nn.Module()
            parent = inner
        parent._modules[name] = module

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path: layers may be called as this class's properties are, ``layers.0`` or ``body.conv`` say."""
        first, _, rest = target.partition(".")
        module = self._modules.get(first)
        return super().get_submodule(target) if module is None else module.get_submodule(rest)

    def _keep_constants(self) -> None:
        """Keep the constants that steps need as buffers, which move with the network but are not saved with it."""
        self.register_buffer("_precision", torch.empty(0), persistent=False)
        weights = {address: (layer.weight, layer.bias) for address, layer in self._layers.items()}
        for number, body in enumerate(self._bodies.value):
            needed = set(body.outputs)
            for step in body.steps:
                needed |= {*step.needs, *step.captured} - set(weights.get(step.address, ()))
            for inner in (each for step in body.steps for branch in step.branches or () for each in branch.all()):
                for step in inner.steps:
                    needed |= set(step.needs) - set(weights.get(step.address, ()))
            for name in sorted(needed & body.constants.keys()):
                buffer = f"_constant_{len(self._buffer_names)}"
                self._buffer_names[number, name] = buffer
                if body.constants[name].numel() <= _MOST_KNOWN:
                    self._known[buffer] = body.constants[name].reshape(-1).tolist()
                value = body.constants[name]
                self.register_buffer(buffer, value.float() if value.is_floating_point() else value, persistent=False)

    def _constant(self, body: Body, name: str) -> Tensor | None:
        for scope in body.around():
            buffer = self._buffer_names.get((self._numbers[id(scope)], name))
            if buffer is not None:
                value = self.get_buffer(buffer)
                return with_numbers(value, self._known[buffer]) if buffer in self._known else value
        return None


def _in(value: Tensor, precision: torch.dtype) -> Tensor:
    """The value in the precision if it is one of floats; torch's export would keep a cast that does nothing."""
    return value.to(precision) if value.is_floating_point() and value.dtype != precision else value


class _Shared:
    """A value that all copies of a network have in common."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: object) -> _Shared:
        return self


def _joined(parts: Sequence[Mapping[str, Tensor]], size: int, count: int) -> dict[str, Tensor]:
    """The outputs of runs of ``size`` samples as those of one batch of ``count``; one without a batch axis gets one."""
    joined = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        has_batch = first.ndim > 0 and len(first) == size
        joined[name] = (torch.cat(values) if has_batch else torch.stack(values))[:count]
    return joined
