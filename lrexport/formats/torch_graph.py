"""torch's exporter: network → torch's graph → ONNX, with its errors in one line."""

from __future__ import annotations

import functools
import gc
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.signature import INPUT
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.quiet import quiet

# The exporter's message for operators that it cannot translate.
_WITHOUT_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


def to_program(network: nn.Module, example: Batch) -> Any:
    """torch's graph of a network for inputs like ``example``; None if only the exporter's other strategies may succeed."""
    try:
        with quiet(), _uncollected(), _searching_once(), _from_tensors_to_tensors(network, example):
            return torch.export.export(network, example.tensors)
    except Exception:  # the exporter reports the error, if any
        return None


def to_onnx(
    network: nn.Module,
    example: Batch,
    outputs: Sequence[str],
    opset: int,
    dynamic: Sequence[Mapping[int, str]] = (),
    program: Any = None,
) -> onnx.ModelProto:
    """The ONNX graph of a network, or of ``program``, torch's graph, for inputs like ``example``.

    ``outputs`` are the names of what it returns; ``dynamic`` has for each input the names of its axes of any size. Raises
    InputError if it cannot be traced, or has operators that ONNX lacks.
    """
    sizes = {name: torch.export.Dim(name) for axes in dynamic for name in axes.values()}
    shapes: Any = tuple({axis: sizes[name] for axis, name in axes.items()} for axes in dynamic) or None
    try:
        with quiet(), _uncollected(), _searching_once(), _from_tensors_to_tensors(network, example) as is_changed:
            made = torch.onnx.export(
                network if program is None else program,
                example.tensors,
                dynamo=True,
                external_data=False,
                input_names=list(example.names or [INPUT]),
                output_names=list(outputs),
                opset_version=opset,
                dynamic_shapes=(shapes,) if shapes and is_changed else shapes,
                verbose=False,
            )
    except Exception as error:
        raise refusal(error) from error
    assert made is not None
    return made.model_proto


@contextmanager
def _from_tensors_to_tensors(network: nn.Module, example: Batch) -> Iterator[bool]:
    """Let the network take its inputs in order and return a tuple of tensors; yields whether its forward was replaced.

    A wrapper module would change the names of all weights and layers in the graph.
    """
    with torch.no_grad():
        output = call(network, example.clone())
    if isinstance(output, Tensor) and len(example.tensors) == 1:
        yield False
        return
    original = network.forward

    def forward(*tensors: Tensor) -> Any:
        positional, named = Batch(tensors, example.names).arguments_of(original)
        returned = original(*positional, **named)
        return returned if isinstance(returned, Tensor) else tuple(flat_tensors(returned))

    had_its_own = "forward" in vars(network)
    network.forward = forward
    try:
        yield True
    finally:
        if had_its_own:
            network.forward = original
        else:
            del network.forward


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection inside the block: it would visit a million objects of the exporter's, which all stay, again and
    again, and take a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def _listed(_of_torchvision: bool, make: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """torch's list of ONNX functions, as ``make`` gives it; nothing here adds to it.

    It has those for torchvision's operators only if they were defined when it was made. ``make`` asks each function for its
    intermediate form, which takes a second for all, and uses the domain's name only.
    """
    with ExitStack() as replaced:
        try:
            traced: Any = importlib.import_module("onnxscript._internal.values").TracedOnnxFunction
            assert isinstance(vars(traced)["function_ir"], property)
        except (ImportError, AttributeError, KeyError, AssertionError):
            pass
        else:
            domain = property(lambda function: SimpleNamespace(domain=function.opset.domain))
            replaced.enter_context(_replaced(traced, "function_ir", domain))
        return make(*given, **named)


class _Unevaluated(type):
    """In the place of collections.abc.Callable where annotations are evaluated and never read."""

    def __getitem__(cls, _parameters: object) -> None:
        return None

    def __instancecheck__(cls, value: object) -> bool:
        return callable(value)


class _Callable(metaclass=_Unevaluated):
    """What torch._ops has for Callable during an export."""


@contextmanager
def _searching_once() -> Iterator[None]:
    """Spare torch's exporter searches that take longer than most exports.

    The list of ONNX functions is kept from one export to the next. Composite operators are looked up once an export, not
    twice for each library of operators. Annotations in torch._ops, evaluated ten thousand times an export, are not made.
    All are details of torch's: where one is not as expected, torch works as usual.
    """
    with ExitStack() as replaced:
        try:
            registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
            make = registry.__dict__["from_torchlib"].__func__
        except (ImportError, KeyError, AttributeError):
            pass
        else:
            listed = classmethod(
                lambda *given, **named: _listed(hasattr(torch.ops.torchvision, "nms"), make, *given, **named)
            )
            replaced.enter_context(_replaced(registry, "from_torchlib", listed))
        try:
            operators: Any = importlib.import_module("torch._export.utils")
            look_up = functools.cache(operators._materialize_cpp_cia_ops)
        except (ImportError, AttributeError):
            pass
        else:
            replaced.enter_context(_replaced(operators, "_materialize_cpp_cia_ops", look_up))
        if getattr(torch._ops, "Callable", None) is Callable:
            replaced.enter_context(_replaced(torch._ops, "Callable", _Callable))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


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
