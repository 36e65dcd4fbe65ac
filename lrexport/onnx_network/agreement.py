"""Compare a file's network with ONNX Runtime, node by node where they differ, before anything is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lrexport.errors import InputError
from lrexport.onnx_network.body import Address
from lrexport.onnx_network.inputs import random_inputs
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.operators.facts import from_array
from lrexport.onnx_network.running import NodeError
from lrexport.onnx_network.source import SourceModel
from lrexport.onnx_network.trial import outputs_in_runtime
from lrexport.text import first_line

# ONNX Runtime approximates sigmoid and tanh to about 1e-7, however small they are.
_LEAST = 1e-6
_NO_BFLOAT16 = (
    "Few of ONNX Runtime's operators compute in bfloat16. Convert the file to float32 or float16; weights in bfloat16 may "
    "stay where a Cast makes them float32."
)
_ROUNDED = 0.01  # share of integers that may differ, where a rounding decides which of two values is larger
_MOST_ROUNDS = 20  # each finds all nodes that differ, up to the first that fails


@torch.no_grad()
def agreeing(network: OnnxNetwork, path: Path) -> OnnxNetwork:
    """The network, with ONNX Runtime for those nodes that compute something else in torch; samples alone if they mix.

    Raises InputError with the reason if ONNX Runtime does not run the file at ``path``.
    """
    given = _random(network)
    arrays = [_array(name, value) for name, value in given.items()]
    hint = _NO_BFLOAT16 if onnx.TensorProto.BFLOAT16 in network.types.values() else None
    expected = outputs_in_runtime(path, list(given), arrays, hint)
    _match_outputs(network, expected)
    in_runtime: set[Address] = set()
    values: Mapping[str, Tensor] | None = None
    for _ in range(_MOST_ROUNDS):
        error = _difference(network, given, expected)
        if error is None:
            break
        values = values or _values_in_runtime(network.file, given, path)
        different = _different(network, given, values)
        if not different - in_runtime:
            # Every node agrees for the same values before it, so that only rounding adds up.
            if isinstance(error, InputError):
                raise error
            break
        in_runtime |= different
        network = OnnxNetwork(network.file, network.inputs, in_runtime).eval()
    _check_batch(network)
    return network


def _random(network: OnnxNetwork) -> dict[str, Tensor]:
    """One random input as the file takes it, by name."""
    drawn = zip(network.inputs, random_inputs(network.inputs), strict=True)
    return {each.name: value[0] if each.is_whole else value for each, value in drawn}


def _array(name: str, value: Tensor) -> np.ndarray[Any, Any]:
    if value.dtype == torch.bfloat16:
        raise InputError(f"input {name!r} is bfloat16, which ONNX Runtime does not take from Python", _NO_BFLOAT16)
    return value.numpy()


def _match_outputs(network: OnnxNetwork, expected: list[np.ndarray[Any, Any]]) -> None:
    """Raise InputError for a value that torch cannot hold."""
    for name, array in zip(network.output_names, expected, strict=True):
        if from_array(array) is None:
            raise InputError(f"output {name!r} of the file has the type {array.dtype}; expected numbers")


def _difference(network: OnnxNetwork, given: Mapping[str, Tensor], expected: list[Any]) -> str | InputError | None:
    """How the network differs from ONNX Runtime's outputs, or why it does not run; None if it computes the same."""
    try:
        outputs = network.run(given)
    except InputError as error:
        return error
    except Exception as error:  # a layer that does not fit its input
        return InputError(first_line(error))
    close = network.tolerance
    for (name, mine), other in zip(outputs.items(), expected, strict=True):
        if not _alike(mine, from_array(other), close):
            return f"output {name!r} differs from ONNX Runtime's"
    return None


def _alike(mine: Tensor, other: Tensor | None, close: float) -> bool:
    if other is None or mine.shape != other.shape:
        return False
    if not mine.numel():
        return True
    one, two = (value.double().nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30) for value in (mine, other))
    if not mine.is_floating_point():
        return bool((one != two).double().mean() <= _ROUNDED)
    if bool((mine.isnan() != other.isnan()).any()):
        return False
    return float((one - two).abs().max()) <= close * float(two.abs().max()) + _LEAST


def _different(network: OnnxNetwork, given: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> set[Address]:
    """The nodes whose results differ, or that fail, for the values that ONNX Runtime has before them."""
    made_by = {name: step for step in network.body.steps for name in step.makes if name}
    different: set[Address] = set()
    close = network.tolerance

    def watch(name: str, value: Tensor) -> Tensor | None:
        other = values.get(name)
        if other is None or name not in made_by:
            return None
        if not _alike(value, other, close):
            different.add(made_by[name].address)
        return other.to(value.dtype) if other.shape == value.shape else other

    last: list[str] = []

    def noting(name: str, value: Tensor) -> Tensor | None:
        last.append(name)
        return watch(name, value)

    try:
        network.run(given, noting)
    except NodeError as error:
        different.add(error.address)
    except InputError:  # of a group in ONNX Runtime: no other node explains it
        pass
    except Exception:  # a layer that does not fit its input: the next one after the last value
        seen = set(last)
        waiting = (step for step in network.body.steps if not seen & set(step.makes))
        different |= {step.address for step in waiting if step.address in {each.address for each in network.layers}}
    return different


def _values_in_runtime(source: SourceModel, given: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Every value of the outermost graph by name, for inputs by name. Raises InputError if it cannot be run."""
    import onnxruntime

    watched = source.whole()
    known = {item.name for item in watched.graph.output}
    names = [name for node in watched.graph.node for name in node.output if name and name not in known]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        declared = {item.name for item in session.get_inputs()}
        wanted = [item.name for item in session.get_outputs()]
        made = session.run(wanted, {name: _array(name, value) for name, value in given.items() if name in declared})
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot show the values inside {path}: {first_line(error)}") from error
    values = {name: from_array(array) for name, array in zip(wanted, made, strict=True) if hasattr(array, "dtype")}
    return {name: value for name, value in values.items() if value is not None}


@torch.no_grad()
def _check_batch(network: OnnxNetwork) -> None:
    """Run samples one by one if the file cannot take two at once, or mixes them."""
    if network.portion is not None:
        return
    both = random_inputs(network.inputs, samples=2, seed=1)
    try:
        together = network(*both)
        alone = [network(*(tensor[place : place + 1] for tensor in both)) for place in (0, 1)]
    except Exception:
        network.one_by_one()
        return
    named = [each if isinstance(each, dict) else {"": each} for each in (together, *alone)]
    close = network.tolerance
    for name, value in named[0].items():
        parts = [part[name] for part in named[1:]]
        if not all(part.ndim for part in parts) or not _alike(value, torch.cat(parts), close):
            network.one_by_one()
            return
