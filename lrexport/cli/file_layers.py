"""The layers of an .onnx file that can be compressed, and why others cannot: loads torch, unlike the rest of inspect."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import UsageError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.networks.onnx_source import read_onnx
from lrexport.onnx_network.gradients import unreached, why_unreached
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.plan import Dense
from lrexport.report.graphs import FileLayer
from lrexport.runs.starting_point import decompose_file
from lrexport.signature import InputSpec, Signature


def layers_of(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[list[FileLayer], str | None]:
    """The layers of the file at ``path``, and a note if gradients do not reach some of them.

    ``shapes`` are sizes of inputs by name, with the batch. Raises InputError and UsageError as :func:`read_onnx`.
    """
    network = _read(path, shapes)
    missed = unreached(network)
    svd = decompose_file(network, "auto", ())
    known: dict[str, Factorisable | Dense] = {**svd.layers, **svd.dense}
    order = [name for name, _ in svd.network.named_modules() if name in known]
    layers = []
    for name in order:
        facts = known[name]
        if isinstance(facts, Factorisable):
            ranks: dict[str, int] = {scheme: each.full_rank for scheme, each in facts.schemes.items()}
            layers.append(FileLayer(name, facts.shape, facts.dense_macs, ranks))
        else:
            layers.append(FileLayer(name, facts.shape, facts.dense_macs, {}, facts.reason))
    layers += [FileLayer(name, None, None, {}, reason) for name, reason in network.graph_reasons.items()]
    if not missed:
        return layers, None
    return layers, f"gradients do not reach {len(missed)} of {len(network.layers)} layers: {why_unreached(network)}"


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> OnnxNetwork:
    """The network, whose inputs have these sizes with the batch first, or without one."""
    try:
        if not shapes:
            return read_onnx(path)
        try:
            return read_onnx(path, Signature(tuple(InputSpec(name, shape[1:]) for name, shape in shapes.items())))
        except UsageError:
            return read_onnx(path, Signature(tuple(InputSpec(name, shape) for name, shape in shapes.items())))
    except UsageError as error:
        raise UsageError(error.message, "Give all sizes of that input by --shape NAME=SIZES, with the batch.") from error
