"""Verification of an exported graph: onnx's checker, outputs against torch, accuracy against torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats.agreement import (
    RELATIVE_TOLERANCE,
    Agreement,
    Array,
    ComparedOutputs,
    Rounding,
    Terms,
    check_agreement,
)
from lrexport.formats.pixels import preprocessing_in, to_pixels
from lrexport.formats.sample_sessions import like_network
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors

__all__ = ["RELATIVE_TOLERANCE", "Comparison", "Reference"]

# Inputs for measuring rounding errors: double precision takes several times as long.
_MEASURED = 3

# Detectors keep a box or not by comparing values, so the least rounding can decide.
_ROWS = (
    "If the number of rows depends on values, rounding decides it: let the network return what it chooses from, "
    "as torchvision:NAME?heads=true does."
)

Comparison = Agreement


def check_model(model: onnx.ModelProto) -> None:
    """Run onnx's checker with strict shape inference. Raises InputError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and others from C++: without a common base
        raise InputError(f"the exported graph is not valid ONNX: {first_line(error)}") from error


class Reference:
    """torch's outputs for some inputs, as a reference for graphs.

    ``extremes`` are inputs for which a network may return infinity or round badly: a graph only has to do the same.
    Raises InputError if the network returns NaN for one of ``inputs``. Unless ``strict``, onnx's checker is not asked.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Mapping[str, Batch],
        extremes: Mapping[str, Batch] | None = None,
        strict: bool = True,
    ) -> None:
        self._network, self._strict = network, strict
        # Rounding errors are measured on few inputs of a group, slice by slice: all of a group have the same sizes.
        groups = [*((given, False) for given in _of_one_size(inputs)), *([(extremes, True)] if extremes else [])]
        self._groups = [(given, [_outputs(network, each) for each in given.values()], lenient) for given, lenient in groups]
        for given, expected, lenient in self._groups:
            if not lenient:
                _refuse_nan(given, expected)

    def compare(self, model: onnx.ModelProto) -> Comparison:
        """Compare ``model`` on every input. Raises InputError with the largest difference and its place."""
        if self._strict:
            check_model(model)
        runtime = like_network(open_graph(model), self._network)
        worst = Comparison(0.0, "nowhere")
        for given, expected, lenient in self._groups:
            results = [_run(runtime, label, each) for label, each in given.items()]
            names = [item.name for item in runtime.get_outputs()]
            for label, mine, torchs in zip(given, results, expected, strict=True):
                _check_form(label, mine, torchs)
            for number, name in enumerate(names):
                pairs = [
                    ComparedOutputs(label, _array(torchs[number]), np.asarray(mine[number]).astype(np.float64))
                    for label, torchs, mine in zip(given, expected, results, strict=True)
                ]
                terms = Terms("the exported graph", "torch", lenient=lenient)
                rounding = self._rounding(list(given.values()), expected, number)
                worst = worst.worst(check_agreement(pairs, rounding, terms, name if len(names) > 1 else ""))
        return worst

    def _rounding(self, inputs: list[Batch], expected: list[list[Tensor]], number: int) -> Rounding:
        """Rounding errors of float32 in output ``number`` for a few of the inputs."""
        last = len(inputs) - 1
        chosen = sorted({round(last * part / (_MEASURED - 1)) for part in range(_MEASURED)})

        def measure() -> Sequence[Array]:
            exact = [_more_exact(self._network, inputs[index])[number] for index in chosen]
            pairs = [
                ComparedOutputs("", _array(one), _array(expected[index][number]))
                for one, index in zip(exact, chosen, strict=True)
            ]
            return [np.where(np.isfinite(pair.difference), pair.difference, 0.0) for pair in pairs]

        return measure


def _of_one_size(inputs: Mapping[str, Batch]) -> list[dict[str, Batch]]:
    """The inputs in groups whose samples have the same shapes."""
    groups: dict[tuple[torch.Size, ...], dict[str, Batch]] = {}
    for label, given in inputs.items():
        groups.setdefault(tuple(tensor.shape[1:] for tensor in given.tensors), {})[label] = given
    return list(groups.values())


def _refuse_nan(inputs: Mapping[str, Batch], outputs: list[list[Tensor]]) -> None:
    for label, tensors in zip(inputs, outputs, strict=True):
        for output in tensors:
            if output.is_floating_point() and output.isnan().any():
                share = f"{int(output.isnan().sum()):,} of {output.numel():,} values"
                raise InputError(
                    f"the network returns NaN for {label}: {share}",
                    "Check its weights, and whether it accepts inputs of this range.",
                )


def compare_with_torch(network: nn.Module, model: onnx.ModelProto, inputs: Mapping[str, Batch]) -> Comparison:
    """Compare both on every input. Raises InputError with the largest error and its place if it exceeds the tolerance."""
    return Reference(network, inputs).compare(model)


@torch.no_grad()
def _outputs(network: nn.Module, given: Batch) -> list[Tensor]:
    """The network's outputs on the CPU, copied: they may be views of the input, which the network may change."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with eval_mode(network):
        return [tensor.detach().cpu().clone() for tensor in flat_tensors(call(network, given.to(device, copy=True)))]


def check_repeats(network: nn.Module, given: Batch) -> None:
    """Raise InputError, with the first module concerned, for a network whose output in eval mode is not deterministic."""
    first, second = _outputs(network, given), _outputs(network, given)
    worst = 0.0
    for one, two in zip(first, second, strict=True):
        if one.shape != two.shape:
            worst = float("inf")
        elif one.numel():
            scale = float(np.nan_to_num(np.abs(_array(one))).max()) or 1.0
            worst = max(worst, float(ComparedOutputs("", _array(one), _array(two)).difference.max()) / scale)
    if worst <= RELATIVE_TOLERANCE:
        return
    raise InputError(
        f"in eval mode two outputs of the network for one input differ by {worst:.2g} of the largest: "
        f"it draws random numbers or keeps state between runs, {_where_it_differs(network, given)}",
        "Pass self.training to dropout, as in F.dropout(x, p, self.training); an exported graph cannot draw numbers.",
    )


def _where_it_differs(network: nn.Module, given: Batch) -> str:
    """The first module whose outputs differ although its inputs are the same."""
    runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules() if name}

    def copies(value: object) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in flat_tensors(value)]

    def note(module: nn.Module, given_to: object, output: object) -> None:
        runs[-1].append((names[module], copies(given_to), copies(output)))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        for _ in range(2):
            runs.append([])
            _outputs(network, given)
    finally:
        for hook in hooks:
            hook.remove()
    for (name, one_given, one), (_, two_given, two) in zip(*runs, strict=False):
        if not _all_equal(one_given, two_given):
            return f"in its own forward, before its module {name!r}"
        if not _all_equal(one, two):
            return f"in its module {name!r}"
    return "in its own forward"


def _all_equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(
        mine.shape == other.shape and torch.equal(mine.nan_to_num(), other.nan_to_num())
        for mine, other in zip(one, two, strict=True)
    )


def _more_exact(network: nn.Module, given: Batch) -> list[Tensor]:
    """The network's outputs in double precision; if it always computes in float32, its outputs for an input that differs
    in its last bits."""
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    wide = {name: tensor.detach().double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    try:
        with torch.no_grad(), eval_mode(network):
            positional, named = given.map(_double).arguments(network)
            result = torch.func.functional_call(network, wide, positional, named, tie_weights=True)
            return [tensor.detach().cpu().clone() for tensor in flat_tensors(result)]
    except Exception:  # a forward that creates float32 tensors; whatever the reason, the network itself runs
        return _outputs(network, given.map(_almost))


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _almost(tensor: Tensor) -> Tensor:
    """A few units of float32's last place off."""
    if not tensor.is_floating_point():
        return tensor
    signs = torch.randint(2, tensor.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return tensor * (1 + 4 * torch.finfo(torch.float32).eps * signs).to(tensor)


def _run(runtime: Any, label: str, given: Batch) -> list[npt.NDArray[Any]]:
    try:
        outputs: list[npt.NDArray[Any]] = runtime.run(None, feed_of(runtime, given))
    except Exception as error:  # no common base except Exception
        raise InputError(f"ONNX Runtime cannot run the exported graph for {label}: {first_line(error)}") from error
    return outputs


def _check_form(label: str, results: list[npt.NDArray[Any]], expected: list[Tensor]) -> None:
    """Compare number, shapes and types of outputs. Raises InputError."""
    if len(results) != len(expected):
        raise InputError(f"the exported graph returns {len(results)} outputs for {label}, torch returns {len(expected)}")
    for mine, torchs in zip(results, expected, strict=True):
        if mine.shape != tuple(torchs.shape):
            raise InputError(
                f"the exported graph returns {mine.shape} for {label}, torch returns {tuple(torchs.shape)}",
                _ROWS if mine.shape[1:] == tuple(torchs.shape[1:]) else None,
            )
        kind = str(torchs.dtype).removeprefix("torch.")
        if str(mine.dtype) != kind:
            raise InputError(f"the exported graph returns {mine.dtype} for {label}, torch returns {kind}")


def _array(tensor: Tensor) -> Array:
    return tensor.to(torch.float64).numpy()


def feed_of(runtime: Any, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Arrays for a session by the names of its inputs. An input that the graph does not use is left out.

    A file with the normalisation in its graph gets the pictures that a batch of the network's inputs was made from.
    """
    declared = [item.name for item in runtime.get_inputs()]
    names = batch.names if len(batch.names) > 1 else declared
    if runtime.get_inputs()[0].type == "tensor(uint8)" and batch.tensors[0].is_floating_point():
        in_graph = preprocessing_in(runtime.get_modelmeta().custom_metadata_map)
        batch = batch if in_graph is None else to_pixels(batch, in_graph)
    named = zip(names, batch.tensors, strict=False)
    return {name: tensor.contiguous().numpy() for name, tensor in named if name in declared}


def _logits(runtime: Any, batch: Batch) -> Tensor:
    """(B, …) → (B, classes)."""
    return torch.from_numpy(runtime.run(None, feed_of(runtime, batch))[0])


@torch.no_grad()
def is_blind(network: nn.Module, noise: Batch, zeros: Batch) -> bool:
    """Whether random inputs change the outputs by no more than the tolerance; an untrained ViT always returns zeros."""
    noise = noise[:1].map(lambda tensor: tensor.expand(len(zeros), *tensor.shape[1:]))
    outputs = zip(flat_tensors(call(network, noise)), flat_tensors(call(network, zeros)), strict=True)
    return all(_is_alike(one.double(), other.double()) for one, other in outputs)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().max() <= RELATIVE_TOLERANCE * one.abs().max())


def open_graph(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session. Raises InputError if the runtime refuses the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; names would be printed raw
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime refuses the exported graph: {error}") from error
