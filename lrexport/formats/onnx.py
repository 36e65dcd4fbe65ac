"""torch network → one ONNX file, each step verified: export, strip, compare with torch, simplify, compare again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from lrexport.signature import InputSpec, Signature
from lrexport.torch_tools.batch import Batch, BatchLike, InputsLike, call, draw_input, signature_of
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors, named_tensors
from lrexport.torch_tools.quiet import quiet
from lrexport.torch_tools.tracing import example_input, like_weights
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
    input_shape: InputsLike,
    *,
    batch: int | None = 1,
    opset: int = FIRST_OPSET,
    samples: BatchLike | None = None,
) -> Exported:
    """Write ``network`` to ``path`` as one self-contained ONNX file in float32, compared with torch.

    ``input_shape`` is that of the network's one input, or what :func:`~lrexport.decompose` accepts for several. Inputs keep
    their names; a single one without a name is ``input``. A single output is ``output``, several are ``output_0``,
    ``output_1`` …, or have the names of the keys and fields that hold them. ``batch`` is the fixed batch size, or None for
    a dynamic one; ``samples``, (N, …) each, are real inputs to compare on, in addition to random ones. The network is
    exported in eval mode, and its mode restored; a network in another precision or on a GPU is copied first. Raises
    UsageError for an opset that cannot be written or run, InputError if the graph differs from torch or is too large for one
    file; then ``path`` is not written.
    """
    check_opset(opset)
    path = Path(path)
    signature = signature_of(input_shape, network)
    network = _in_float32_on_cpu(network)
    _check_bytes(sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())))
    with eval_mode(network):
        outputs = _check_output(network, signature, batch)
        inputs = _comparison_inputs(network, signature, batch, None if samples is None else Batch.of(samples))
        check_repeats(network, next(iter(inputs.values())))
        torchs = Reference(network, inputs, _extremes(network, signature, batch))
        model = _export(network, signature, batch, opset, outputs)
        check_written(model, batch, opset, outputs)
        strip(model)
        _check_bytes(_size_bytes(model))
        comparison = torchs.compare(model)
        simpler = _simplify(model)
        if simpler is not None:
            try:
                check_written(simpler, batch, opset, outputs)
                comparison = comparison.worst(torchs.compare(simpler))
                model = simpler
            except InputError:  # the unverified graph
                simpler = None
        blind = _is_blind(network, next(iter(inputs.values())), _example(network, signature, batch))
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


def _example(network: nn.Module, signature: Signature, batch: int | None) -> Batch:
    # Two samples: with one, torch.export turns a dynamic batch into the constant 1.
    return example_input(network, signature, samples=2 if batch is None else batch)


@torch.no_grad()
def _check_output(network: nn.Module, signature: Signature, batch: int | None) -> dict[str, bool]:
    """Names of the tensors that the network returns, and whether the batch is the first axis of each."""
    example = _example(network, signature, batch)
    try:
        output = call(network, example)
    except Exception as error:
        raise InputError(f"the network does not accept float32 inputs of {_shapes(example)}: {error}") from error
    check_output(output, batch if batch == 1 else None)  # of others the graph itself tells
    return has_batch(output, len(example))


def _shapes(batch: Batch) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in batch.tensors]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {', '.join(shapes)}"


def has_batch(output: object, samples: int) -> dict[str, bool]:
    """The tensors of an output for ``samples`` inputs by name, and whether their first axis is as long as the batch."""
    return {name: bool(tensor.ndim) and len(tensor) == samples for name, tensor in named_tensors(output).items()}


def _export(
    network: nn.Module, signature: Signature, batch: int | None, opset: int, outputs: Collection[str]
) -> onnx.ModelProto:
    example = _example(network, signature, batch)
    dynamic = [{0: "batch"} for _ in signature] if batch is None else ()
    return in_opset(to_onnx(network, example, list(outputs), max(opset, FIRST_OPSET), dynamic), opset)


def check_output(output: object, batch: int | None = None) -> None:
    """Raise InputError unless a network that returns ``output`` for ``batch`` samples can be exported.

    It returns tensors, in whatever holds them; a single one has the batch as its first axis.
    """
    tensors = named_tensors(output)
    if not tensors or (isinstance(output, Tensor) and output.ndim == 0):
        returned = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"the network returns {returned}; expected tensors with the batch first",
            "Wrap it in a module whose forward returns those.",
        )
    if batch is not None and isinstance(output, Tensor) and len(output) != batch:
        raise InputError(
            f"the network returns shape {tuple(output.shape)} for a batch of {batch}: the first axis is not the batch",
            "squeeze() without axes also drops a batch of 1: use flatten(1), or squeeze with explicit axes.",
        )
    halves = [name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16]
    if halves:
        what = "the network returns bfloat16" if len(tensors) == 1 else f"output {halves[0]!r} of the network is bfloat16"
        raise InputError(f"{what}, which ONNX Runtime cannot return", "Return x.float() from its forward.")


def check_written(model: onnx.ModelProto, batch: int | None, opset: int, outputs: Mapping[str, bool]) -> None:
    """Raise InputError unless the file declares the requested opset, batch and ``outputs`` (see :func:`has_batch`)."""
    written = opset_of(model)
    if written != opset:
        raise InputError(f"the exporter wrote opset {written} instead of {opset}", f"Use --opset {written}.")
    names = [item.name for item in model.graph.output]
    if names != list(outputs):
        raise InputError(f"the exported graph has the outputs {', '.join(names)}; expected {', '.join(outputs)}")
    for item in (*model.graph.input, *model.graph.output):
        if not outputs.get(item.name, True):
            continue
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
def _is_blind(network: nn.Module, noise: Batch, zeros: Batch) -> bool:
    """Whether random inputs change the outputs by no more than the tolerance; an untrained ViT always returns zeros."""
    noise = noise[:1].map(lambda tensor: tensor.expand(len(zeros), *tensor.shape[1:]))
    outputs = zip(flat_tensors(call(network, noise)), flat_tensors(call(network, zeros)), strict=True)
    return all(_is_alike(one.double(), other.double()) for one, other in outputs)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().max() <= RELATIVE_TOLERANCE * one.abs().max())


def _comparison_inputs(
    network: nn.Module, signature: Signature, batch: int | None, samples: Batch | None
) -> dict[str, Batch]:
    """Random and real inputs with the fixed batch, or with several sizes of a dynamic one."""
    generator, like = torch.Generator().manual_seed(0), like_weights(network)
    sizes = (1, 2, 5) if batch is None else (batch,) * (3 if batch <= _FEW else 2)
    inputs: dict[str, Batch] = {}
    for number, size in enumerate(sizes):
        again = f", draw {number + 1}" if number and batch is not None else ""
        drawn = tuple(draw_input(spec, size, like, generator) for spec in signature)
        inputs[f"random input, batch {size}{again}"] = Batch(drawn, signature.names)
    if samples is not None and len(samples):
        size = batch or min(_REAL, len(samples))
        for start in range(0, min(len(samples), max(_REAL, size)), size):
            real = Batch(samples[start : start + size].filled(size).tensors, signature.names).to(torch.device("cpu"))
            inputs[f"real input, batch {size}" + (f", from sample {start + 1}" if start else "")] = real
    return inputs


def _extremes(network: nn.Module, signature: Signature, batch: int | None) -> dict[str, Batch]:
    """Extreme inputs: all zeros, and values far outside those of a normalised image."""
    size, generator, like = batch or 2, torch.Generator().manual_seed(1), like_weights(network)
    large = tuple(_large(spec, size, like, generator) for spec in signature)
    extremes = {f"an input of zeros, batch {size}": example_input(network, signature, size)}
    return extremes | {f"large random input, batch {size}": Batch(large, signature.names)}


def _large(spec: InputSpec, size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = draw_input(spec, size, like, generator)
    if spec.low is None and spec.is_float:
        return 10 * drawn
    return drawn if spec.high is None else torch.full_like(drawn, spec.high)
