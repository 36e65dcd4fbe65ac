"""The file with the network's present layers: only nodes of layers that changed are replaced, in a copy of the file.

The copy is edited as protobuf, so that whatever is not replaced stays as it is, byte for byte: names, types, free axes,
metadata, opsets, IR version, domains, and the order of everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lrexport.artifacts.onnx_graphs import bodies
from lrexport.onnx_network.body import Address, Body, Step
from lrexport.onnx_network.edits import drop, free_name, graph_at, names_in, names_used, replace_nodes
from lrexport.onnx_network.layers import Layer, module_of
from lrexport.onnx_network.network import OnnxNetwork

# Before this version of the format weights are inputs too.
_FREE_WEIGHTS = 4
# From this opset Gemm needs no third input.
_FREE_THIRD = 11
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def to_onnx(network: OnnxNetwork) -> onnx.ModelProto:
    """The file of ``network`` with its present layers: a pair is two nodes, named after the layer's.

    A layer whose weights are still those of the file keeps its node. New weights have the type of those they replace.
    """
    return network.file.fill(_Writer(network).write())


def structure_of(network: OnnxNetwork) -> onnx.ModelProto:
    """:func:`to_onnx` without the values of large tensors, to count with."""
    return _Writer(network, with_values=False).write()


class _Writer:
    def __init__(self, network: OnnxNetwork, with_values: bool = True) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(network.source)
        self.network, self.model, self.with_values = network, model, with_values
        self.names = names_in(model)
        self.node_names = {node.name for body in bodies(model) for node in body.node}
        self.steps = {step.address: (step, body) for body in network.body.all() for step in body.steps}
        self.shared: dict[tuple[int, str], str] = {}  # weights that several nodes have, by their parameter
        self.new: list[TensorProto] = []
        self.casts: list[NodeProto] = []

    def write(self) -> onnx.ModelProto:
        replaced: dict[tuple[tuple[int, str], ...], dict[int, list[NodeProto]]] = defaultdict(dict)
        gone: set[str] = set()
        for layer in self.network.layers:
            step, body = self.steps[layer.address]
            module = self.network.get_submodule(layer.path)
            if not isinstance(module, nn.Sequential) and _is_unchanged(module, step, body):
                continue
            place, index = layer.address
            replaced[place][index] = list(self._nodes(layer, step, module))
            gone |= {name for name in (layer.weight, layer.bias) if name}
        graphs = {place: graph_at(self.model, place) for place in replaced}  # before places shift
        for place, nodes in replaced.items():
            replace_nodes(graphs[place], nodes)
        for node in reversed(self.casts):  # before all graphs that may use them
            self.model.graph.node.insert(0, node)
        self._remove_unused(gone)
        self.model.graph.initializer.extend(self.new)
        if self.model.ir_version < _FREE_WEIGHTS:
            self.model.graph.input.extend(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in self.new
            )
        return self.model

    def _nodes(self, layer: Layer, step: Step, module: nn.Module) -> Iterator[NodeProto]:
        """The nodes of a layer, or of the two halves of its pair."""
        value = step.needs[1 if layer.form.left else 0]
        if not isinstance(module, nn.Sequential):
            yield from self._node(layer, step, module, value, step.makes[0], "")
            return
        first, second = module
        middle = self._name(f"{step.makes[0]}.first")
        yield from self._node(layer, step, first, value, middle, ".first")
        yield from self._node(layer, step, second, middle, step.makes[0], ".second")

    def _node(self, layer: Layer, step: Step, half: Any, value: str, output: str, ending: str) -> Iterator[NodeProto]:
        name = self._node_name(f"{step.node.name or layer.path}{ending}", step)
        kind = self._element(layer)
        if isinstance(half, nn.Linear):
            yield from self._linear(layer, step, half, (value, output, name), ending)
            return
        inputs = [value, self._tensor(layer, half.weight, ending, kind)]
        if half.bias is not None:
            inputs.append(self._bias(layer, step, half, ending, kind))
        attributes: dict[str, Any] = {
            "kernel_shape": list(half.kernel_size),
            "strides": list(half.stride),
            "dilations": list(half.dilation),
            "group": half.groups,
        }
        if isinstance(half, _TRANSPOSED):
            attributes["pads"] = self._cut(layer, half, ending)
            if any(half.output_padding):
                attributes["output_padding"] = list(half.output_padding)
            yield helper.make_node("ConvTranspose", inputs, [output], name, **attributes)
            return
        attributes |= self._padding(layer, step, half, ending)
        yield helper.make_node("Conv", inputs, [output], name, **attributes)

    def _cut(self, layer: Layer, half: Any, ending: str) -> list[int]:
        """``pads`` of a transposed half: of axes along which it has a kernel or stride, or of all if the other has none."""
        if not layer.form.cut:
            return [*half.padding, *half.padding]
        cut = list(layer.form.cut)
        if ending:
            other = self._other_half(layer, half)
            if isinstance(other, _TRANSPOSED):
                sizes = zip(half.kernel_size, half.stride, other.kernel_size, other.stride, strict=True)
                mine = [a * b > 1 or (ending == ".first" and c * d == 1) for a, b, c, d in sizes]
                cut = [each if own else (0, 0) for each, own in zip(cut, mine, strict=True)]
        return [before for before, _ in cut] + [after for _, after in cut]

    def _padding(self, layer: Layer, step: Step, half: Any, ending: str) -> dict[str, Any]:
        """A half pads the axes of its kernel; axes along which no half has one are padded by the first."""
        if not layer.form.padded:
            return {"pads": [*half.padding, *half.padding]}
        mine = self._axes_of(layer, half, ending)
        mode = step.facts.text("auto_pad", "NOTSET")
        if mode != "NOTSET":
            if all(mine) or all(own or length == stride == 1 for own, length, stride in _axes(mine, half)):
                return {"auto_pad": mode}
            return {"pads": [0] * (2 * len(mine))}
        pads = list(step.facts.get("pads"))
        both = [*mine, *mine]
        return {"pads": [pad if own else 0 for pad, own in zip(pads, both, strict=True)]}

    def _other_half(self, layer: Layer, half: Any) -> Any:
        """The other half of the pair that a layer became."""
        pair = self.network.get_submodule(layer.path)
        return next(each for each in pair.children() if each is not half)

    def _axes_of(self, layer: Layer, half: Any, ending: str) -> list[bool]:
        """Whether a half pads an axis: that of its kernel, the first half also those along which neither has one."""
        if not ending:
            return [True] * len(half.kernel_size)
        other = self._other_half(layer, half)
        lengths = zip(half.kernel_size, other.kernel_size, strict=True)
        return [own > 1 or (ending == ".first" and own == length == 1) for own, length in lengths]

    def _linear(
        self, layer: Layer, step: Step, half: nn.Linear, where: tuple[str, str, str], ending: str
    ) -> Iterator[NodeProto]:
        value, output, name = where
        form, kind = layer.form, self._element(layer)
        weight = self._tensor(layer, half.weight, ending, kind, turned=not form.left)
        inputs = [weight, value] if form.left else [value, weight]
        is_last = ending != ".first"
        turns = {"transB" if form.left else "transA": 1} if form.turned and ending != ".second" else {}
        added, times = (form.added, form.times) if is_last else (None, 1.0)
        bias: str | None = None if half.bias is None else self._bias(layer, step, half, ending, kind)
        if layer.kind == "Gemm" and (turns or added or bias):
            third, bias = (added, bias) if added else (bias, None)
            if third is None and step.facts.opset < _FREE_THIRD:
                third = self._zero(f"{layer.path}{ending}.zero", kind)
            more: dict[str, Any] = {**turns, **({"beta": times} if added and times != 1.0 else {})}
            product = output if bias is None else self._name(f"{output}.product")
            yield helper.make_node("Gemm", [*inputs, *([third] if third else [])], [product], name, **more)
        else:
            product = output if bias is None else self._name(f"{output}.product")
            yield helper.make_node("MatMul", inputs, [product], name)
        if bias is not None:
            yield helper.make_node("Add", [product, bias], [output], self._node_name(f"{name}.bias", step))

    def _bias(self, layer: Layer, step: Step, half: Any, ending: str, kind: int) -> str:
        """The name of a half's bias: the file's tensor if it is still the same; (outputs, 1) for a product from the left."""
        body = self.steps[layer.address][1]
        before = body.constant(layer.bias) if layer.bias else None
        if before is not None and layer.bias is not None and float(step.facts.get("beta", 1.0)) == 1.0:
            flat = before.reshape(-1)
            if flat.shape == half.bias.shape and torch.equal(flat.float(), half.bias.detach().cpu().float()):
                return layer.bias
        return self._tensor(layer, half.bias, f"{ending}.bias", kind, turned=layer.form.left)

    def _zero(self, wanted: str, kind: int) -> str:
        name = self._name(wanted)
        self.new.append(numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)), name))
        return name

    def _tensor(self, layer: Layer, value: Tensor, ending: str, kind: int, turned: bool = False) -> str:
        """The name of a new initializer with this value; layers that share a parameter share it."""
        key = (id(value), "turned" if turned else "")
        if key not in self.shared:
            is_bias = ending.endswith("bias")
            stem = layer.path if is_bias else layer.origin.removesuffix(".weight")
            name = self._name(f"{stem}{ending}" if is_bias else f"{stem}{ending}.weight")
            self.shared[key] = name
            half = None if is_bias else self._half_before_cast(layer, kind)
            if half is not None:
                kind, cast, name = half, name, self._name(f"{name}.half")
                node_name = free_name(f"{cast}.cast", self.node_names)
                self.casts.append(helper.make_node("Cast", [name], [cast], node_name, to=self._element(layer)))
            array = value.detach().cpu()
            if turned:
                array = array.T if array.ndim > 1 else array.unsqueeze(1)
            if self.with_values:
                made = np.ascontiguousarray(array.float().numpy()).astype(helper.tensor_dtype_to_np_dtype(kind))
                self.new.append(numpy_helper.from_array(made, name))
            else:
                self.new.append(TensorProto(name=name, data_type=kind, dims=array.shape))
        return self.shared[key]

    def _element(self, layer: Layer) -> int:
        """The type of a layer's weight in the file."""
        kind = self.network.types.get(layer.weight) or self.network.types.get(layer.origin)
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
        return kind if kind is not None and kind in floats else TensorProto.FLOAT

    def _half_before_cast(self, layer: Layer, kind: int) -> int | None:
        """float16 if the file keeps a layer's weight so and casts it to ``kind`` float32, else None.

        Two factors in bfloat16 would be twice as far from the network as its own weights, which are far enough.
        """
        kept = self.network.types.get(layer.origin)
        is_cast = kind == TensorProto.FLOAT and kept == TensorProto.FLOAT16 and layer.origin != layer.weight
        return kept if is_cast else None

    def _name(self, wanted: str) -> str:
        return free_name(wanted, self.names)

    def _node_name(self, wanted: str, step: Step) -> str:
        """A name that no other node has, which ONNX Runtime requires; ``step`` is the node that it may take it from."""
        return wanted if wanted == step.node.name else free_name(wanted, self.node_names)

    def _remove_unused(self, candidates: set[str]) -> None:
        """Remove the tensors of replaced nodes, and the constant nodes that made them, where nothing else uses them."""
        folded: list[Address] = [address for body in self.network.body.all() for address in body.folded]
        source = self.network.source
        constant = {name for place, index in folded for name in graph_at(source, place).node[index].output}
        while dead := candidates - names_used(self.model):
            candidates -= dead
            for body in bodies(self.model):
                if isinstance(body, GraphProto):
                    drop(body.initializer, [tensor.name in dead for tensor in body.initializer])
                gone = [set(node.output) <= dead & constant for node in body.node]
                candidates |= {name for node, is_gone in zip(body.node, gone, strict=True) if is_gone for name in node.input}
                drop(body.node, gone)
            drop(self.model.graph.input, [item.name in dead for item in self.model.graph.input])


def _axes(mine: list[bool], half: Any) -> Iterator[tuple[bool, int, int]]:
    return zip(mine, half.kernel_size, half.stride, strict=True)


def _is_unchanged(module: Any, step: Step, body: Body) -> bool:
    """Whether a layer is as the file has it."""
    before = module_of(step, body, lambda _name, value: nn.Parameter(value))
    if before is None or isinstance(before, str):
        return False
    other: Any = before.module
    if type(module) is not type(other) or (module.bias is None) != (other.bias is None):
        return False
    pairs = [(module.weight, other.weight)] + ([(module.bias, other.bias)] if module.bias is not None else [])
    return all(torch.equal(one.detach().cpu().float(), two.detach()) for one, two in pairs)
