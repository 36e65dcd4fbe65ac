"""A network from an .onnx file → its file with the present layers: nothing else is touched, and the result is compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from lrexport.artifacts import files
from lrexport.config.export_options import FIRST_OPSET
from lrexport.errors import InputError, UsageError
from lrexport.formats.comparison_inputs import comparison_inputs
from lrexport.formats.exported import Exported
from lrexport.formats.graph_sessions import open_graph, run_graph
from lrexport.formats.opsets import opset_of
from lrexport.formats.pixels import describe
from lrexport.formats.sample_sessions import like_network
from lrexport.formats.verify import Reference, check_repeats, is_blind
from lrexport.measure.macs.onnx_macs import GraphCost, count_onnx
from lrexport.networks.onnx_source import file_shapes
from lrexport.onnx_network.inputs import FileInput
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.writing import structure_of, to_onnx
from lrexport.preprocessing import METADATA_KEY, Preprocessing
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch, BatchLike
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import noise

# How much other sizes than the network's own differ from them, until it accepts some: many take multiples only.
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_MOST_OTHERS = 2


def export_rewritten(
    network: OnnxNetwork,
    path: Path,
    *,
    samples: BatchLike | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
) -> Exported:
    """Write ``network`` to ``path`` as the .onnx file it came from, with its present layers.

    Names and types of inputs and outputs, free sizes, opsets and metadata stay as they are; ``preprocessing`` and
    ``classes`` are added to the metadata. The file is compared with the network in torch on random inputs, on ``samples``,
    and at other sizes where it leaves them free. Raises InputError if it differs; then ``path`` is not written.
    """
    network = network if _on_cpu(network) else copy_network(network).cpu()
    model = to_onnx(network)
    known = {item.key for item in model.metadata_props}
    describe(model, None if METADATA_KEY in known else preprocessing, False, classes)
    content, others = model.SerializeToString(), other_sizes(network)
    try:
        return _written(network, model, content, path, samples, others)
    except InputError:
        run = [other for other in others if _original_runs(network, other)]
        if len(run) == len(others):
            raise
        return _written(network, model, content, path, samples, run)


def as_it_was(network: OnnxNetwork, source: Path, path: Path, samples: BatchLike | None = None) -> Exported:
    """Copy the file ``source`` that ``network`` is of, unchanged, to ``path``. Raises InputError if the network differs."""
    content = files.read_bytes(source)
    return _written(network, onnx.load_from_string(content), content, path, samples)


def _written(
    network: OnnxNetwork,
    model: onnx.ModelProto,
    content: bytes,
    path: Path,
    samples: BatchLike | None,
    others: Sequence[Signature] = (),
) -> Exported:
    """Compare ``model`` with the network, also at the ``others`` of its sizes, and write its ``content`` to ``path``."""
    signature = network.signature
    with eval_mode(network):
        real = None if samples is None else Batch.of(samples)
        inputs = comparison_inputs(network, signature, None, real, others)
        first = next(iter(inputs.values()))
        check_repeats(network, first)
        # Most files were checked strictly by nobody; that ONNX Runtime runs this one the same way is what matters.
        comparison = Reference(network, inputs, strict=False, tolerance=network.tolerance).compare(model)
        blind = is_blind(network, first, noise(network, signature, seed=1, samples=len(first)))
    files.write_bytes(path, content)
    return Exported(path, len(content), opset_of(model), cost_of(network, model), comparison, False, blind)


def check_untouched(
    batch: int | None, dynamic: Sequence[str], opset: int, with_preprocessing: bool, wording: str = "--"
) -> None:
    """Raise UsageError for options of an export that would change more of a file than its layers."""
    asked = [
        ("batch", (batch is None and not dynamic) or batch not in (None, 1)),
        ("dynamic", bool(dynamic)),
        ("opset", opset != FIRST_OPSET),
        ("with-preprocessing", with_preprocessing),
    ]
    for name, is_asked in asked:
        if is_asked:
            option = f"--{name}" if wording else name.replace("-", "_")
            raise UsageError(
                f"{option} does not apply to a network from an .onnx file: only its layers change",
                f"Omit {option}; the new file has the inputs, free sizes and opset of the original.",
            )


def cost_of(network: OnnxNetwork, model: onnx.ModelProto | None = None) -> GraphCost:
    """MACs for one sample and parameters of the network's file with its present layers, or of ``model``, if it is that."""
    shapes = file_shapes(network)
    try:
        return count_onnx(structure_of(network) if model is None else model, shapes, batch=network.portion or 1)
    except UsageError as error:
        raise InputError(f"cannot count the MACs of the file: {error.message}", error.hint) from error


def other_sizes(network: OnnxNetwork) -> list[Signature]:
    """Inputs of other sizes than the network's own that it accepts, where its file leaves sizes free; at most two."""
    free = _free(network)
    if not any(free.values()):
        return []
    accepted: list[Signature] = []
    for step in _STEPS:
        for change in (step, -step):
            other = _changed(network.inputs, free, change)
            if other is not None and _accepts(network, other):
                accepted.append(other)
        if accepted:
            break
    return accepted[:_MOST_OTHERS]


def _free(network: OnnxNetwork) -> dict[str, dict[int, str]]:
    """For every input the free axes of a sample, apart from the batch, with a name that axes of the same size share."""
    declared = {item.name: item.type.tensor_type for item in network.source.graph.input}
    batched = [declared[each.name].shape.dim for each in network.inputs if not each.is_whole]
    batch = {dims[0].dim_param for dims in batched if dims}
    free: dict[str, dict[int, str]] = {}
    for each in network.inputs:
        kind = declared[each.name]
        sizes = list(kind.shape.dim)[0 if each.is_whole else 1 :] if kind.HasField("shape") else []
        free[each.name] = {
            axis: size.dim_param or f"{each.name}:{axis}"
            for axis, size in enumerate(sizes)
            if size.dim_value <= 0 and (not size.dim_param or size.dim_param not in batch)
        }
    return free


def _changed(inputs: Sequence[FileInput], free: Mapping[str, Mapping[int, str]], change: int) -> Signature | None:
    """The inputs with free sizes changed, each name by another multiple, so that a swap of two is noticed."""
    order = list(dict.fromkeys(name for axes in free.values() for name in axes.values()))
    specs = []
    for each in inputs:
        sizes = list(each.spec.shape)
        for axis, name in free[each.name].items():
            sizes[axis] += change * (1 + order.index(name) % 2)
        if min(sizes, default=1) < 1:
            return None
        specs.append(replace(each.spec, shape=tuple(sizes)))
    return Signature(tuple(specs))


@torch.no_grad()
def _accepts(network: OnnxNetwork, signature: Signature) -> bool:
    """Whether the file runs on inputs of these sizes."""
    try:
        network(*noise(network, signature).tensors)
    except Exception:  # whatever an operator raises
        return False
    return True


def _original_runs(network: OnnxNetwork, signature: Signature) -> bool:
    """Whether ONNX Runtime runs the file itself on inputs of these sizes, and returns numbers; torch takes more sizes."""
    given = noise(network, signature)
    try:
        runtime = like_network(open_graph(network.file.whole(), as_written=True), network)
        outputs = run_graph(runtime, "other sizes", Batch(given.tensors, signature.names))
    except InputError:
        return False
    return not any(np.isnan(output).any() for output in outputs if output.dtype.kind == "f")


def _on_cpu(network: OnnxNetwork) -> bool:
    return all(tensor.device.type == "cpu" for tensor in _tensors(network))


def _tensors(network: OnnxNetwork) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()
