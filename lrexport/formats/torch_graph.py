"""torch's exporter: network → torch's graph → ONNX, with its errors in one line."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.text import first_line
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.quiet import quiet

INPUT, OUTPUT = "input", "output"
# The exporter's message for operators that it cannot translate.
_WITHOUT_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


def to_program(network: nn.Module, example: Tensor) -> Any:
    """torch's graph of a network for inputs like ``example``; None if only the exporter's other strategies may succeed."""
    try:
        with quiet():
            return torch.export.export(network, (example,))
    except Exception:  # the exporter reports the error, if any
        return None


def to_onnx(network: Any, example: Tensor, opset: int, dynamic: bool = False) -> onnx.ModelProto:
    """The ONNX graph of a network, or of torch's graph, for inputs like ``example``; ``dynamic``: for any batch.

    Raises InputError if it cannot be traced, or has operators that ONNX lacks.
    """
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    try:
        with quiet(), _listing_functions_once():
            made = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        raise refusal(error) from error
    assert made is not None
    return made.model_proto


@functools.cache
def _listed(make: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """torch's list of ONNX functions, as ``make`` gives it; nothing here adds to it."""
    return make(*given, **named)


@contextmanager
def _listing_functions_once() -> Iterator[None]:
    """Keep torch's list of ONNX functions from one export to the next: making it takes longer than most exports.

    That list is a detail of torch's: where it is not as expected, every export makes its own.
    """
    try:
        registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        original = registry.__dict__["from_torchlib"]
        make = original.__func__
    except (ImportError, KeyError, AttributeError):
        yield
        return

    registry.from_torchlib = classmethod(lambda *given, **named: _listed(make, *given, **named))
    try:
        yield
    finally:
        registry.from_torchlib = original


def refusal(error: Exception) -> InputError:
    """An error of torch's exporter in one line; its dump of the graph stays in the exception, which --debug shows."""
    cause: BaseException = error
    while cause.__cause__ is not None:  # the outermost only names the exporter's step
        cause = cause.__cause__
    text, place = str(cause), place_in_code(cause)
    if operators := sorted(set(_WITHOUT_FUNCTION.findall(text))):
        named = ", ".join(operators)
        return InputError(
            f"torch could not export the network to ONNX: its exporter has no ONNX function for {named}",
            "Use other operators in the network's forward.",
        )
    if "data-dependent" in text or "is_nonzero" in text:
        return InputError(
            "torch could not export the network to ONNX: its forward branches on values of a tensor, "
            f"which a graph cannot ({first_line(cause)})",
            f"{f'{place} ' if place else ''}Use torch.where, or sizes that do not depend on values.",
        )
    return InputError(f"torch could not export the network to ONNX: {first_line(cause)}", place)
