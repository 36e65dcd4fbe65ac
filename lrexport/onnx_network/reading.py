"""Read an ONNX file as a torch network, and compare both before anything is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lrexport.artifacts.onnx_files import external_files
from lrexport.errors import InputError
from lrexport.onnx_network.inputs import inputs_of
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.operators.facts import from_array
from lrexport.signature import Signature
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch, draw_input

# As a share of the largest value; sums in another order differ by about 1e-6, half precision by 1e-3.
_CLOSE, _CLOSE_HALF = 1e-4, 2e-2
_MOST_OPERATORS = 8  # that may turn out to compute something else in torch


def read_signature(path: Path, inputs: Signature | None = None) -> Signature:
    """What a file's network takes. Raises as :func:`read_network`, without reading weights."""
    external_files(path)
    model = _load(path, with_data=False)
    return Signature(tuple(each.spec for each in inputs_of(model, inputs, str(path))))


def read_network(path: Path, inputs: Signature | None = None, check: bool = True) -> OnnxNetwork:
    """The network of the ONNX file at ``path``, in eval mode, computing as ONNX Runtime does.

    A child process with limits of memory and time checks the file first. ``inputs`` gives sizes that the file leaves free,
    and ranges of values. With ``check`` one random input is run in ONNX Runtime too: operators whose results differ run
    there from then on. Raises InputError for a file that is damaged, or that ONNX Runtime does not run, and UsageError for
    sizes that are missing or do not fit.
    """
    external_files(path)
    model = _load(path)
    network = OnnxNetwork(model, inputs_of(model, inputs, str(path))).eval()
    if check:
        _agree(network, path)
    return network


def _load(path: Path, with_data: bool = True) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=with_data)
    except Exception as error:  # the parser raises many types; a child process has read the file before
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


@torch.no_grad()
def _agree(network: OnnxNetwork, path: Path) -> None:
    """Compare with ONNX Runtime on one random input, and let it run the operators that differ."""
    session = _open(network.source, path)
    given = _random(network)
    expected = _run(session, network, given, path)
    for _ in range(_MOST_OPERATORS):
        why = _difference(network, given, expected)
        if why is None:
            break
        operator = _first_different(network, given, path)
        if operator is None:
            raise InputError(f"{path}: {why}, and no operator explains it")
        network.run_in_runtime(operator)
    else:
        raise InputError(f"{path}: more than {_MOST_OPERATORS} operators compute something else in torch")
    _check_batch(network)


def _open(model: onnx.ModelProto, path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"ONNX Runtime refuses {path}: {first_line(error)}") from error


def _random(network: OnnxNetwork) -> dict[str, Tensor]:
    """One random input as the file takes it, by name."""
    generator, like = torch.Generator().manual_seed(0), torch.empty(0)
    drawn = {}
    for each in network.inputs:
        count = each.batch or 1
        value = draw_input(each.spec, count, like, generator)
        drawn[each.name] = value[0] if each.is_whole else value
    return drawn


def _run(session: Any, network: OnnxNetwork, given: Mapping[str, Tensor], path: Path) -> list[np.ndarray[Any, Any]]:
    declared = {item.name for item in session.get_inputs()}
    feed = {name: value.numpy() for name, value in given.items() if name in declared}
    try:
        made: list[np.ndarray[Any, Any]] = session.run(None, feed)
    except Exception as error:
        raise InputError(f"ONNX Runtime does not run {path} on {_shapes(given)}: {first_line(error)}") from error
    return made


def _shapes(given: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())


def _difference(network: OnnxNetwork, given: Mapping[str, Tensor], expected: list[Any]) -> str | None:
    """How the network differs from ONNX Runtime's outputs; None if it does not."""
    try:
        outputs = network.run(given)
    except InputError as error:
        return error.message
    for (name, mine), other in zip(outputs.items(), expected, strict=True):
        if not isinstance(other, np.ndarray):
            raise InputError(f"output {name!r} of the file is a {type(other).__name__}; expected a tensor")
        if not _alike(mine, from_array(other)):
            return f"output {name!r} differs from ONNX Runtime's"
    return None


def _alike(mine: Tensor, other: Tensor | None) -> bool:
    if other is None or mine.shape != other.shape:
        return False
    if not mine.numel():
        return True
    one, two = mine.double().nan_to_num(), other.double().nan_to_num()
    if not mine.is_floating_point():
        return bool((one != two).double().mean() <= 0.01)  # a rounding that decides the largest of two values
    scale = float(two.abs().max()) or 1.0
    return float((one - two).abs().max()) <= (_CLOSE_HALF if mine.dtype != torch.float32 else _CLOSE) * scale


def _first_different(network: OnnxNetwork, given: Mapping[str, Tensor], path: Path) -> str | None:
    """The operator of the first node whose result differs although the values before it agree."""
    from lrexport.onnx_network.trial import values_in_runtime

    runtime = values_in_runtime(network.source, given, path)
    operators = {name: step.facts.operator for step in network.body.steps for name in step.makes}
    layers = {layer.address for layer in network.layers}
    fixed = {name for step in network.body.steps if step.address in layers for name in step.makes}
    first: list[str] = []

    def watch(name: str, value: Tensor) -> None:
        other = runtime.get(name)
        if not first and other is not None and name not in fixed and not _alike(value, other):
            first.append(operators.get(name, ""))

    try:
        network.run(given, watch)
    except InputError:
        made: set[str] = set()
        return first[0] if first and first[0] else _failing(network, given, made)
    return first[0] if first and first[0] and first[0] not in network.without_gradient else None


def _failing(network: OnnxNetwork, given: Mapping[str, Tensor], made: set[str]) -> str | None:
    """The operator of the node that fails."""
    try:
        network.run(given, lambda name, _value: made.add(name))
    except InputError:
        for step in network.body.steps:
            if (
                step.operator is not None
                and not made & set(step.makes)
                and step.facts.operator not in network.without_gradient
            ):
                return step.facts.operator
    return None


@torch.no_grad()
def _check_batch(network: OnnxNetwork) -> None:
    """Run samples one by one if the file cannot take two at once, or mixes them."""
    if network.portion is not None:
        return
    generator, like = torch.Generator().manual_seed(1), torch.empty(0)
    batch = Batch(tuple(draw_input(each.spec, 2, like, generator) for each in network.inputs))
    try:
        together = network(*batch.tensors)
        alone = [network(*(tensor[place : place + 1] for tensor in batch.tensors)) for place in (0, 1)]
    except Exception:
        network.one_by_one()
        return
    named = [each if isinstance(each, dict) else {"": each} for each in (together, *alone)]
    for name, value in named[0].items():
        parts = [part[name] for part in named[1:]]
        if not all(part.ndim for part in parts) or not _alike(value, torch.cat(parts)):
            network.one_by_one()
            return
