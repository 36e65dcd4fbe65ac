"""torch network → one ONNX file, each step verified: export, strip, compare with torch, simplify, compare again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from lrexport.artifacts import files
from lrexport.artifacts.onnx_graphs import bodies, domain_of, graphs_in
from lrexport.errors import InputError
from lrexport.formats.opsets import FIRST_OPSET, check_opset, in_opset, opset_of
from lrexport.formats.torch_graph import to_onnx
from lrexport.formats.verify import RELATIVE_TOLERANCE, Comparison, Reference, check_repeats
from lrexport.measure.macs.onnx_macs import GraphCost, count_onnx
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.quiet import quiet
from lrexport.units import format_bytes

# Number of real inputs to compare; also the largest batch of random inputs that is drawn a second time.
_REAL, _FEW = 8, 4
# Limit on weights and nodes of one file: protobuf's 2 GiB minus room for names and shapes.
_MOST_BYTES = (2 << 30) - (1 << 20)


@dataclass(frozen=True)
class Exported:
    """A finished file: its cost counted on the graph, and the largest relative error against torch in all comparisons.

    ``blind``: the output hardly depends on the input, so agreement with torch proves little.
    """

    path: Path
    bytes: int
    opset: int
    cost: GraphCost
    comparison: Comparison
    simplified: bool
    blind: bool = False


def export_onnx(
    network: nn.Module,
    path: str | Path,
    input_shape: tuple[int, ...],
    *,
    batch: int | None = 1,
    opset: int = FIRST_OPSET,
    samples: Tensor | None = None,
) -> Exported:
    """Write ``network`` to ``path`` as one self-contained ONNX file; input ``input``, output ``output``, float32.

    ``batch`` is the fixed batch size, or None for a dynamic one; ``samples`` (N, *input_shape) are real inputs to
    compare on, in addition to random ones. The network is exported in eval mode, and its mode restored; a network in
    another precision or on a GPU is copied first. Raises UsageError for an opset that cannot be written or run, InputError
    if the graph differs from torch or is too large for one file; then ``path`` is not written.
    """
    check_opset(opset)
    path = Path(path)
    network = _in_float32_on_cpu(network)
    _check_bytes(sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())))
    with eval_mode(network):
        _check_output(network, input_shape, batch)
        inputs = _comparison_inputs(input_shape, batch, samples)
        check_repeats(network, next(iter(inputs.values())))
        torchs = Reference(network, inputs, _extremes(input_shape, batch))
        model = _export(network, input_shape, batch, opset)
        check_written(model, batch, opset)
        strip(model)
        _check_bytes(_size_bytes(model))
        comparison = torchs.compare(model)
        simpler = _simplify(model)
        if simpler is not None:
            try:
                check_written(simpler, batch, opset)
                comparison = comparison.worst(torchs.compare(simpler))
                model = simpler
            except InputError:  # the unverified graph
                simpler = None
        blind = _is_blind(network, inputs, _example(network, input_shape, batch))
    content = model.SerializeToString()
    files.write_bytes(path, content)
    return Exported(path, len(content), opset, count_onnx(model, batch=batch), comparison, simpler is not None, blind)


def _in_float32_on_cpu(network: nn.Module) -> nn.Module:
    """The network in float32 on the CPU, copied if necessary: a GPU's convolutions may round to TF32, unlike the file."""
    tensors = (*network.parameters(), *network.buffers())
    if all(tensor.device.type == "cpu" for tensor in tensors) and all(
        tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()
    ):
        return network
    return copy_network(network).cpu().float()


def _size_bytes(model: onnx.ModelProto) -> int:
    """Bytes of weights and nodes, summed one by one: protobuf itself only counts up to 2 GiB."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) + sum(
        node.ByteSize() for node in model.graph.node
    )


def _check_bytes(size: int) -> None:
    if size > _MOST_BYTES:
        raise InputError(
            f"the network takes {format_bytes(size)}; one ONNX file has at most {format_bytes(_MOST_BYTES)}",
            "lrexport does not write external data; torch.onnx.export(…, external_data=True) does. If only a run's dense "
            "network is too large, lrexport.export_onnx(lrexport.load(RUN), …) writes the compressed one alone.",
        )


def _example(network: nn.Module, input_shape: tuple[int, ...], batch: int | None) -> Tensor:
    parameter = next(network.parameters(), torch.empty(0))
    # Two images: with one, torch.export turns a dynamic batch into the constant 1.
    return torch.zeros(2 if batch is None else batch, *input_shape, device=parameter.device)


@torch.no_grad()
def _check_output(network: nn.Module, input_shape: tuple[int, ...], batch: int | None) -> None:
    """An input of the network, after checking its output. Raises InputError unless that is one tensor, batch first."""
    example = _example(network, input_shape, batch)
    try:
        output = network(example)
    except Exception as error:
        raise InputError(f"the network does not accept a float32 input of shape {tuple(example.shape)}: {error}") from error
    check_output(output, batch if batch == 1 else None)  # of others the graph itself tells


def _export(network: nn.Module, input_shape: tuple[int, ...], batch: int | None, opset: int) -> onnx.ModelProto:
    example = _example(network, input_shape, batch)
    return in_opset(to_onnx(network, example, max(opset, FIRST_OPSET), dynamic=batch is None), opset)


def check_output(output: object, batch: int | None = None) -> None:
    """Raise InputError unless ``output``, for ``batch`` inputs, is one tensor with the batch first."""
    if not isinstance(output, Tensor) or output.ndim == 0:
        returned = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"the network returns {returned}; expected one tensor with the batch first",
            "Wrap it in a module whose forward returns that tensor.",
        )
    if batch is not None and len(output) != batch:
        raise InputError(
            f"the network returns shape {tuple(output.shape)} for a batch of {batch}: the first axis is not the batch",
            "squeeze() without axes also drops a batch of 1: use flatten(1), or squeeze with explicit axes.",
        )
    if output.dtype == torch.bfloat16:
        raise InputError(
            "the network returns bfloat16, which ONNX Runtime cannot return", "Return x.float() from its forward."
        )


def check_written(model: onnx.ModelProto, batch: int | None, opset: int) -> None:
    """Raise InputError unless the file declares the requested opset and batch."""
    written = opset_of(model)
    if written != opset:
        raise InputError(f"the exporter wrote opset {written} instead of {opset}", f"Use --opset {written}.")
    for item in (*model.graph.input, *model.graph.output):
        first = item.type.tensor_type.shape.dim[0]
        fixed = first.dim_value if first.HasField("dim_value") else None
        if fixed != batch:
            expected = "a dynamic batch" if batch is None else f"a batch of {batch}"
            declared = "a dynamic one" if fixed is None else str(fixed)
            raise InputError(
                f"expected {expected}, but {item.name!r} was written with {declared}",
                "The network's forward fixes the batch, for example by a reshape; use -1 or x.shape[0] there.",
            )


def strip(model: onnx.ModelProto) -> None:
    """Remove what no runtime needs, in place: doc strings, metadata, inferred shapes (up to 100 KB) and unused opsets.

    A runtime might refuse a file because of an unknown opset, even an unused one; onnxruntime's quantiser declares all of
    its own. The passes of onnx-ir are 50 times slower and keep the shapes (docs/decisions.md, "By libraries").
    """
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    _strip_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    used = {domain_of(node) for body in bodies(model) for node in body.node} | {""}
    for entry in [entry for entry in model.opset_import if domain_of(entry) not in used]:
        model.opset_import.remove(entry)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for inner in graphs_in(node):
            _strip_graph(inner)


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """onnxsim's result, or None if it fails: then the verified graph before it is kept."""
    try:
        import onnxsim

        with quiet():
            simpler, agreed = onnxsim.simplify(model)
    except Exception:
        return None
    if not agreed:
        return None
    strip(simpler)
    return simpler


@torch.no_grad()
def _is_blind(network: nn.Module, inputs: Mapping[str, Tensor], zeros: Tensor) -> bool:
    """Whether random inputs change the output by no more than the tolerance; an untrained ViT always returns zeros."""
    noise = next(iter(inputs.values()))[:1].to(zeros)
    noise = noise.expand(len(zeros), *noise.shape[1:])
    of_noise, of_zeros = network(noise), network(zeros)
    return bool((of_noise - of_zeros).abs().max() <= RELATIVE_TOLERANCE * of_noise.abs().max())


def _comparison_inputs(input_shape: tuple[int, ...], batch: int | None, samples: Tensor | None) -> dict[str, Tensor]:
    """Random and real inputs with the fixed batch, or with several sizes of a dynamic one."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 2, 5) if batch is None else (batch,) * (3 if batch <= _FEW else 2)
    inputs: dict[str, Tensor] = {}
    for number, size in enumerate(sizes):
        again = f", draw {number + 1}" if number and batch is not None else ""
        inputs[f"random input, batch {size}{again}"] = torch.randn(size, *input_shape, generator=generator)
    if samples is not None and len(samples):
        size = batch or min(_REAL, len(samples))
        for start in range(0, min(len(samples), max(_REAL, size)), size):
            part = samples[start : start + size]
            repeated = part.repeat(-(-size // len(part)), *[1] * (samples.ndim - 1))[:size]
            inputs[f"real input, batch {size}" + (f", from sample {start + 1}" if start else "")] = repeated.cpu()
    return inputs


def _extremes(input_shape: tuple[int, ...], batch: int | None) -> dict[str, Tensor]:
    """Extreme inputs: all zeros, and values far outside those of a normalised image."""
    size = batch or 2
    large = 10 * torch.randn(size, *input_shape, generator=torch.Generator().manual_seed(1))
    return {f"an input of zeros, batch {size}": torch.zeros_like(large), f"large random input, batch {size}": large}
