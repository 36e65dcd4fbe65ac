"""An ONNX file as a program of torch.export, which toolchains that convert from torch take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrexport.artifacts.onnx_graphs import bodies
from lrexport.errors import InputError
from lrexport.onnx_network.inputs import inputs_of
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.operators.facts import with_numbers
from lrexport.onnx_network.running import needs_of
from lrexport.onnx_network.source import SourceModel
from lrexport.text import first_line

# Values of a shape, of axes, or of limits; larger ones are computed by the program.
_MOST_KNOWN = 64
_OF_SHAPES = ("Shape", "Size")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


class _Positional(nn.Module):
    """The network with its inputs in the file's order and its outputs as a tuple; ``known`` are values that are constant."""

    def __init__(self, network: OnnxNetwork, names: Sequence[str], known: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self._names, self._known = network, tuple(names), known

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        made = self.network.run(dict(zip(self._names, tensors, strict=True)), self._constant)
        return tuple(made[name] for name in self.network.output_names)

    def _constant(self, name: str, value: Tensor) -> Tensor | None:
        array = self._known.get(name)
        return (
            None if array is None else with_numbers(torch.tensor(array.tolist(), dtype=value.dtype), array.ravel().tolist())
        )


def write_program(path: Path, to: Path, inputs: Mapping[str, Tensor]) -> None:
    """Write the network of the ONNX file ``path``, for inputs of these shapes and types, as a program of torch.export.

    ``inputs`` are by name, in the file's order. Raises InputError for a network that torch cannot have as a program.
    """
    model = onnx.load(str(path))
    quantised = sorted({node.op_type for body in bodies(model) for node in body.node if node.op_type in _QUANTISED})
    if quantised:
        raise InputError(f"it has {', '.join(quantised)}: its toolchain gets networks of floats only")
    for item in model.graph.input:
        if item.name in inputs:
            _fix(item, inputs[item.name].shape)
    source = SourceModel(model)
    network = OnnxNetwork(source, inputs_of(source.light, None, path.name)).eval().requires_grad_(False)
    if network.without_gradient:
        operators = ", ".join(network.without_gradient)
        raise InputError(f"torch has no form of {operators}, and its toolchain converts from torch")
    with torch.no_grad():
        wrapped = _Positional(network, list(inputs), _constants(network, inputs))
        try:
            program = _without_unused(torch.export.export(wrapped, tuple(inputs.values())), tuple(inputs.values()))
        except Exception as error:  # the exporter raises anything
            raise InputError(f"torch.export cannot have it as a program: {first_line(error)}") from error
    torch.export.save(program, to)


def _without_unused(program: Any, inputs: tuple[Tensor, ...]) -> Any:
    """The program without constants that nothing uses, such as axes: ExecuTorch does not load files that have only those."""
    module = program.module(check_guards=False)
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_buffers(), *module.named_parameters()]:
        if name not in used:
            around, _, last = name.rpartition(".")
            delattr(module.get_submodule(around), last)
    module.recompile()
    return torch.export.export(module, inputs)


def _fix(item: Any, shape: Sequence[int]) -> None:
    dims = item.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = int(size)


def _constants(network: OnnxNetwork, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Small values that depend on shapes alone, as arrays by name: toolchains need them as constants, not computed."""
    of_data = set(inputs)
    for step in network.body.steps:
        if step.facts.operator not in _OF_SHAPES and of_data & set(needs_of(step)):
            of_data |= set(step.makes)
    found: dict[str, Any] = {}

    def keep(name: str, value: Tensor) -> None:
        if name not in of_data and value.numel() <= _MOST_KNOWN:
            found[name] = value.numpy().copy()

    network.run(inputs, keep)
    return found
