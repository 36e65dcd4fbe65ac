"""torch network → one ONNX file, each step verified: export, strip, compare with torch, simplify, passes, compare again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from lrexport.artifacts import files
from lrexport.artifacts.onnx_graphs import bodies, domain_of, graphs_in
from lrexport.config.export_options import BATCH, FIRST_OPSET, check_dynamic
from lrexport.errors import InputError, UsageError
from lrexport.formats.comparison_inputs import comparison_inputs, extreme_inputs
from lrexport.formats.declared import Asked, check_written, has_batch, sizes_of
from lrexport.formats.dynamic import free_axes
from lrexport.formats.exported import Exported as Exported
from lrexport.formats.opsets import check_opset, in_opset
from lrexport.formats.passes.apply import with_passes
from lrexport.formats.pixels import check_takes_pictures, describe, taking_pixels, to_pixels
from lrexport.formats.rewritten import check_untouched, export_rewritten
from lrexport.formats.torch_graph import to_onnx
from lrexport.formats.verify import Comparison, Reference, check_repeats, is_blind
from lrexport.measure.macs.onnx_macs import count_onnx
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.preprocessing import Preprocessing
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch, BatchLike, InputsLike, call, signature_of
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import named_tensors
from lrexport.torch_tools.quiet import quiet
from lrexport.torch_tools.tracing import example_input
from lrexport.units import format_bytes

# Limit on weights and nodes of one file: protobuf's 2 GiB minus room for names and shapes.
_MOST_BYTES = (2 << 30) - (1 << 20)
_UNCOMPARED = Comparison(0.0, "nowhere")


def export_onnx(
    network: nn.Module,
    path: str | Path,
    input_shape: InputsLike,
    *,
    batch: int | None = 1,
    dynamic: Sequence[str] = (),
    opset: int = FIRST_OPSET,
    samples: BatchLike | None = None,
    preprocessing: Preprocessing | None = None,
    with_preprocessing: bool = False,
    classes: Sequence[str] = (),
    passes: bool = True,
) -> Exported:
    """Write ``network`` to ``path`` as one self-contained ONNX file in float32, compared with torch.

    ``input_shape`` is that of the network's one input, or what :func:`~lrexport.decompose` accepts for several. Inputs keep
    their names; a single one without a name is ``input``. A single output is ``output``, several are ``output_0``,
    ``output_1`` …, or have the names of the keys and fields that hold them. ``batch`` is the fixed batch size, or None for
    a dynamic one. ``dynamic`` names axes that may have any size: "batch" (the same as None), "height", "width", "length";
    the file is then compared at other sizes too. ``samples``, (N, …) each, are real inputs to compare on, in addition to
    random ones. ``preprocessing`` and the names of ``classes`` are written into the file's metadata; with
    ``with_preprocessing`` the normalisation is in the graph, whose input is then uint8 (B, H, W, C), RGB or grey, whatever
    the network's own order of channels; ``samples`` stay the network's inputs. Unless ``passes`` is false, parts of the
    graph that keep runtimes from their fast kernels are written in a form that computes the same: shortcuts of a strided
    slice and padded channels as a constant convolution.

    A network of :func:`lrexport.read_onnx`, compressed or not, is written into a copy of its file, in which nothing but its
    layers changes; ``input_shape`` is not used then, and batch, free axes and opset cannot be chosen.

    The network is exported in eval mode, and its mode restored; a network in another precision or on a GPU is
    copied first. Raises UsageError for an opset that cannot be written or run, and for axes that no input has; InputError
    if the graph differs from torch, or is too large for one file, or if the network accepts no other sizes; then ``path``
    is not written.
    """
    path = Path(path)
    if isinstance(network, OnnxNetwork):
        check_untouched(batch, dynamic, opset, with_preprocessing, wording="")
        return export_rewritten(network, path, samples=samples, preprocessing=preprocessing, classes=classes)
    check_opset(opset)
    signature = signature_of(input_shape, network)
    dynamic = check_dynamic(dynamic)
    if batch is None or BATCH in dynamic:
        if batch not in (None, 1):
            raise UsageError(
                f"a batch of {batch} and a dynamic batch: expected one of the two", "Omit batch, or make it None."
            )
        batch, dynamic = None, check_dynamic((BATCH, *dynamic))
    network = _in_float32_on_cpu(network)
    _check_bytes(sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())))
    real = None if samples is None else Batch.of(samples)
    with eval_mode(network), ExitStack() as pixels:
        if with_preprocessing:
            known = check_takes_pictures(signature, preprocessing)
            pixels.enter_context(taking_pixels(network, known))
            signature, real = signature.as_pixels(), None if real is None else to_pixels(real, known)
        outputs = _check_output(network, signature, batch)
        free = free_axes(network, signature, dynamic, channels_last=with_preprocessing)
        inputs = comparison_inputs(network, signature, batch, real, free.others)
        check_repeats(network, next(iter(inputs.values())))
        torchs = Reference(network, inputs, extreme_inputs(network, signature, batch))
        verified = _verified(network, signature, Asked(batch, opset, outputs, free, passes), torchs)
        blind = is_blind(network, next(iter(inputs.values())), _example(network, signature, batch))
    describe(verified.model, preprocessing, with_preprocessing, classes)
    content = verified.model.SerializeToString()
    files.write_bytes(path, content)
    sizes = sizes_of(verified.model, signature, batch, free)
    cost = count_onnx(verified.model, sizes, batch=batch)
    added = cost.macs - count_onnx(verified.before, sizes, batch=batch).macs if verified.passes else 0
    return Exported(
        path=path,
        bytes=len(content),
        opset=opset,
        cost=cost,
        comparison=verified.comparison,
        simplified=verified.simplified,
        blind=blind,
        free=free,
        passes=verified.passes,
        added_macs=added,
    )


@dataclass(frozen=True)
class _Verified:
    """A graph that agrees with torch; ``before`` any passes, which changed as many places as ``passes`` says."""

    model: onnx.ModelProto
    comparison: Comparison
    simplified: bool
    before: onnx.ModelProto
    passes: Mapping[str, int] = field(default_factory=dict)


def _verified(network: nn.Module, signature: Signature, asked: Asked, torchs: Reference) -> _Verified:
    """The graph, exported at the network's own sizes or, if it only agrees with torch there, at the first of the others.

    A forward that only resizes inputs of other sizes than its own is traced with that step from an input of another size.
    """
    try:
        return _verified_at(network, signature, asked, torchs)
    except InputError as error:
        for other in asked.free.others[:1]:
            with contextlib.suppress(InputError):
                return _verified_at(network, other, asked, torchs)
        if not asked.free.sizes:
            raise
        hint = f"Without a dynamic {' and '.join(asked.free.sizes)} only the network's own sizes have to agree."
        raise InputError(error.message, f"{error.hint} {hint}" if error.hint else hint) from error


def _verified_at(network: nn.Module, example: Signature, asked: Asked, torchs: Reference) -> _Verified:
    """The graph exported for inputs like ``example``, simplified and with passes if the result agrees with torch as well."""
    model = _export(network, example, asked)
    check_written(model, asked)
    strip(model)
    _check_bytes(_size_bytes(model))
    comparison = torchs.compare(model)
    for better in _improved(model, asked):
        with contextlib.suppress(InputError):  # it does not agree: the next one may
            check_written(better.model, asked)
            return replace(better, comparison=comparison.worst(torchs.compare(better.model)))
    return _Verified(model, comparison, simplified=False, before=model)


def _improved(model: onnx.ModelProto, asked: Asked) -> Iterator[_Verified]:
    """The graph simplified and with passes, simplified only, and with passes only: the best first, none compared yet."""
    for graph, is_simplified in ((_simplify(model), True), (model, False)):
        if graph is None:
            continue
        made, changed = with_passes(graph) if asked.passes else (graph, {})
        if changed:
            yield _Verified(made, _UNCOMPARED, is_simplified, graph, changed)
        if is_simplified:
            yield _Verified(graph, _UNCOMPARED, True, graph)


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


def _export(network: nn.Module, signature: Signature, asked: Asked) -> onnx.ModelProto:
    example, dynamic = _example(network, signature, asked.batch), asked.free.inputs
    opset = max(asked.opset, FIRST_OPSET)
    made = to_onnx(network, example, list(asked.outputs), opset, dynamic if any(dynamic) else ())
    return in_opset(made, asked.opset)


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
