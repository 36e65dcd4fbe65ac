"""Verification of an exported graph: onnx's checker, outputs against torch, accuracy against torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats.agreement import RELATIVE_TOLERANCE, Agreement, ComparedOutputs, Terms, check_agreement
from lrexport.formats.chosen_rows import ChosenRows, chosen_outputs, modules_before_choice
from lrexport.formats.graph_sessions import check_model, open_graph, run_graph
from lrexport.formats.sample_sessions import like_network
from lrexport.formats.torch_outputs import array_of, outputs_in_torch, refuse_nan, rounding_of
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.outputs import flat_tensors

__all__ = ["RELATIVE_TOLERANCE", "Comparison", "Reference"]

# Where nothing before such a choice can be compared.
_ROWS = (
    "If the number of rows depends on values, rounding decides it: let the network return what it chooses from, "
    "as torchvision:NAME?heads=true does."
)

Comparison = Agreement


class Reference:
    """torch's outputs for some inputs, as a reference for graphs.

    ``extremes`` are inputs for which a network may return infinity or round badly: a graph only has to do the same.
    Outputs whose rows are chosen by values are compared as :mod:`lrexport.formats.chosen_rows` says. Raises InputError if
    the network returns NaN for one of ``inputs``. Unless ``strict``, onnx's checker is not asked. ``tolerance`` is relative
    to the largest value. A larger one than usual is for graphs that round values to integers: it also holds for slices, and
    kernels for integers, which round at other places, are not used.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Mapping[str, Batch],
        extremes: Mapping[str, Batch] | None = None,
        strict: bool = True,
        tolerance: float = RELATIVE_TOLERANCE,
    ) -> None:
        self._network, self._strict, self._tolerance = network, strict, tolerance
        # Rounding errors are measured on few inputs of a group, slice by slice: all of a group have the same sizes.
        asked = [(given, False) for given in _of_one_size(inputs)] + ([(extremes, True)] if extremes else [])
        self._groups = [
            (given, [outputs_in_torch(network, each) for each in given.values()], lenient) for given, lenient in asked
        ]
        self._choice: ChosenRows | None = None
        for given, expected, lenient in self._groups:
            if not lenient:
                refuse_nan(given, expected)

    def compare(self, model: onnx.ModelProto) -> Comparison:
        """Compare ``model`` on every input. Raises InputError with the largest difference and its place."""
        if self._strict:
            check_model(model)
        rounds = self._tolerance > RELATIVE_TOLERANCE
        runtime = like_network(open_graph(model, as_written=rounds), self._network)
        names, chosen, worst = [item.name for item in runtime.get_outputs()], self._chosen(model), Comparison(0.0, "nowhere")
        for given, expected, lenient in self._groups:
            results = [run_graph(runtime, label, each) for label, each in given.items()]
            for label, mine, torchs in zip(given, results, expected, strict=True):
                _check_form(label, mine, torchs, chosen)
            terms = Terms("the exported graph", "torch", self._tolerance, self._tolerance if rounds else 0.0, lenient)
            for number in sorted(set(range(len(names))) - chosen):
                pairs = [
                    ComparedOutputs(label, array_of(torchs[number]), np.asarray(mine[number]).astype(np.float64))
                    for label, torchs, mine in zip(given, expected, results, strict=True)
                ]
                rounding = rounding_of(self._network, list(given.values()), expected, number)
                worst = worst.worst(check_agreement(pairs, rounding, terms, names[number] if len(names) > 1 else ""))
        return worst.worst(self._choice.compare(model, chosen)) if chosen and self._choice else worst

    def _chosen(self, model: onnx.ModelProto) -> frozenset[int]:
        """The places of outputs whose rows are chosen by values that can be compared."""
        chosen = chosen_outputs(model)
        if chosen and self._choice is None:
            groups = [(given, lenient) for given, _, lenient in self._groups]
            names = modules_before_choice(self._network, next(iter(groups[0][0].values())))
            self._choice = ChosenRows(self._network, names, groups) if names else None
        return chosen if self._choice else frozenset()


def _of_one_size(inputs: Mapping[str, Batch]) -> list[dict[str, Batch]]:
    """The inputs in groups whose samples have the same shapes."""
    groups: dict[tuple[torch.Size, ...], dict[str, Batch]] = {}
    for label, given in inputs.items():
        groups.setdefault(tuple(tensor.shape[1:] for tensor in given.tensors), {})[label] = given
    return list(groups.values())


def compare_with_torch(network: nn.Module, model: onnx.ModelProto, inputs: Mapping[str, Batch]) -> Comparison:
    """Compare both on every input. Raises InputError with the largest error and its place if it exceeds the tolerance."""
    return Reference(network, inputs).compare(model)


def check_repeats(network: nn.Module, given: Batch) -> None:
    """Raise InputError, with the first module concerned, for a network whose output in eval mode is not deterministic."""
    first, second = outputs_in_torch(network, given), outputs_in_torch(network, given)
    worst = 0.0
    for one, two in zip(first, second, strict=True):
        if one.shape != two.shape:
            worst = float("inf")
        elif one.numel():
            scale = float(np.nan_to_num(np.abs(array_of(one))).max()) or 1.0
            worst = max(worst, float(ComparedOutputs("", array_of(one), array_of(two)).difference.max()) / scale)
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
            outputs_in_torch(network, given)
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


def _check_form(
    label: str, results: list[npt.NDArray[Any]], expected: list[Tensor], chosen: frozenset[int] = frozenset()
) -> None:
    """Compare number, shapes and types of outputs; those at ``chosen`` may have other rows. Raises InputError."""
    if len(results) != len(expected):
        raise InputError(f"the exported graph returns {len(results)} outputs for {label}, torch returns {len(expected)}")
    for number, (mine, torchs) in enumerate(zip(results, expected, strict=True)):
        first = 1 if number in chosen else 0
        if mine.ndim != torchs.ndim or mine.shape[first:] != tuple(torchs.shape[first:]):
            raise InputError(
                f"the exported graph returns {mine.shape} for {label}, torch returns {tuple(torchs.shape)}",
                _ROWS if mine.shape[1:] == tuple(torchs.shape[1:]) else None,
            )
        kind = str(torchs.dtype).removeprefix("torch.")
        if str(mine.dtype) != kind:
            raise InputError(f"the exported graph returns {mine.dtype} for {label}, torch returns {kind}")


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
