"""Verification of networks that choose by value what they return, as detectors do after scoring every anchor.

Whether a box is kept depends on comparisons: is its score above a threshold, does a better box overlap it? Where two values
are nearly equal, the least rounding decides; in a network with random weights all scores may be equal. So such outputs are
not compared as they are, but in two steps:

1. What is chosen from: the outputs of those modules whose shapes depend on no value, a detector's backbone and head. For
   each of their tensors the graph must have one that agrees, channel by channel, as outputs of other networks do.
2. The choice: both get random values in place of these tensors, the same for both and each different from the others. The
   rows that the graph then returns must be those that torch does, in any order, but for a small share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from lrexport.errors import InputError
from lrexport.formats.agreement import RELATIVE_TOLERANCE, Agreement, Array, ComparedOutputs, Rows, Terms, check_agreement
from lrexport.formats.graph_sessions import feed_of, open_graph, run_graph
from lrexport.formats.torch_outputs import array_of, outputs_in_torch, rounding_of
from lrexport.lowrank.repair.observed import called_until, comparable
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors, named_tensors, refilled, siblings

# The most of all rows that may be on one side only: a choice between values that differ by a rounding error of its own.
MOST_APART = 0.05
_DRAWS = 3  # inputs for which both choose from random values
_FEW_VALUES = 64  # of a row, by which its counterpart is searched; masks have many more


class ChosenRows:
    """torch's values of what a network chooses from, the outputs of the modules ``names``, as a reference for graphs.

    ``groups`` are inputs by their labels, and whether they are extreme ones, which may be rounded badly.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], groups: Sequence[tuple[Mapping[str, Batch], bool]]) -> None:
        self._network, self._names = network, tuple(names)
        self._before = _Before(network, self._names)
        self._groups = [
            (given, [outputs_in_torch(self._before, each) for each in given.values()], lenient) for given, lenient in groups
        ]
        with torch.no_grad(), eval_mode(network):
            output = call(self._before, next(iter(groups[0][0].values())).clone())
        self._labels = list(named_tensors(output))
        self._counts = [len(list(flat_tensors(output[name]))) for name in self._names]

    def compare(self, model: onnx.ModelProto, chosen: frozenset[int]) -> Agreement:
        """Compare ``model``, whose outputs at the places ``chosen`` have such rows, on every input.

        Raises InputError with the largest difference in what is chosen from, or with the share of other rows.
        """
        inputs, expected, _ = self._groups[0]
        tensors = _counterparts(model, next(iter(inputs.values())), expected[0], self._labels)
        runtime = open_graph(_with_outputs(model, tensors))
        count, worst = len(model.graph.output), Agreement(0.0, "nowhere")
        for inputs, expected, lenient in self._groups:
            results = [run_graph(runtime, label, given) for label, given in inputs.items()]
            terms = Terms("the exported graph", "torch", lenient=lenient)
            for number, name in enumerate(self._labels):
                pairs = [
                    ComparedOutputs(label, array_of(torchs[number]), np.asarray(mine[count + number]).astype(np.float64))
                    for label, torchs, mine in zip(inputs, expected, results, strict=True)
                ]
                rounding = rounding_of(self._before, list(inputs.values()), expected, number)
                worst = worst.worst(check_agreement(pairs, rounding, terms, name))
        rows = self._same_rows(model, tensors, chosen)
        if rows.apart > MOST_APART:
            raise InputError(
                f"{100 * rows.apart:.1f} % of {rows.all:,} rows are chosen only by torch or only by the exported graph from "
                f"the same random outputs of {' and '.join(self._names)}; expected at most {100 * MOST_APART:g} %",
                "Its post-processing differs in ONNX Runtime. Let the network return what it chooses from, as "
                "torchvision:NAME?heads=true does. No files were written.",
            )
        return Agreement(worst.relative_error, worst.where, rows)

    @torch.no_grad()
    def _same_rows(self, model: onnx.ModelProto, tensors: Sequence[str], chosen: frozenset[int]) -> Rows:
        """How many rows of the graph's outputs at ``chosen`` torch returns as well, for the same values of ``tensors``."""
        runtime, generator = open_graph(_fed(model, tensors)), torch.Generator().manual_seed(0)
        inputs, values, _ = self._groups[0]
        rows = Rows(0, 0, self._names)
        for given, before in list(zip(inputs.values(), values, strict=True))[:_DRAWS]:
            drawn = [_drawn(tensor, generator) for tensor in before]
            fed = dict(zip(tensors, (tensor.numpy() for tensor in drawn), strict=True))
            mine = [np.asarray(each).astype(np.float64) for each in runtime.run(None, feed_of(runtime, given) | fed)]
            with eval_mode(self._network), self._returning(drawn):
                output = call(self._network, given.clone())
            expected = [array_of(tensor.detach().cpu()) for tensor in flat_tensors(output)]
            for together in siblings(output):
                if places := [place for place in together if place in chosen]:
                    same, every = matched_rows([expected[place] for place in places], [mine[place] for place in places])
                    rows += Rows(same, every, self._names)
        return rows

    def _returning(self, values: Sequence[Tensor]) -> ExitStack:
        """Until it is closed, the modules return ``values``, in the order of their names and of the tensors in each."""
        stack, left = ExitStack(), list(values)
        for name, count in zip(self._names, self._counts, strict=True):
            here, left = left[:count], left[count:]

            def replace(_module: nn.Module, _args: object, output: Any, here: list[Tensor] = here) -> Any:
                return refilled(output, iter(here))

            stack.callback(self._network.get_submodule(name).register_forward_hook(replace).remove)
        return stack


def chosen_outputs(model: onnx.ModelProto) -> frozenset[int]:
    """The places of a graph's outputs that have sizes which do not come from its inputs."""
    given = {size.dim_param for item in model.graph.input for size in item.type.tensor_type.shape.dim}

    def is_free(item: onnx.ValueInfoProto) -> bool:
        sizes = item.type.tensor_type.shape.dim
        return not all(size.HasField("dim_value") or size.dim_param in given for size in sizes)

    return frozenset(place for place, item in enumerate(model.graph.output) if is_free(item))


def modules_before_choice(network: nn.Module, given: Batch) -> tuple[str, ...]:
    """The modules whose outputs a network chooses from; () if its own outputs have the same shape for any values.

    Also () if torch cannot say so: for networks that take one sample at a time, say, or from a file, which is not exported
    but kept.
    """
    if isinstance(network, OnnxNetwork):
        return ()
    try:
        names = comparable((network,), given.filled(3))
    except Exception:  # whatever the network's code raises
        return ()
    return () if names == ("",) else names


class _Before(nn.Module):
    """What a network computes before it chooses: the outputs of some of its modules, by their names."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = network, names  # inputs are named as those of ``module``

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return called_until(self.module, self.names, (inputs, named))


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random values in the shape of a tensor: normally distributed, with a deviation of at least 1."""
    if not like.is_floating_point():
        return like
    deviation = max(1.0, float(like.std(correction=0).nan_to_num(posinf=1.0))) if like.numel() else 1.0
    return (deviation * torch.randn(like.shape, generator=generator)).to(like.dtype)


def _counterparts(model: onnx.ModelProto, given: Batch, expected: Sequence[Tensor], labels: Sequence[str]) -> list[str]:
    """The tensors of the graph that are nearest to ``expected``, torch's for one input. Raises InputError without one."""
    shapes = dict(_shapes(model))
    candidates = [[name for name, shape in shapes.items() if _may_be(shape, tuple(tensor.shape))] for tensor in expected]
    asked = list(dict.fromkeys(name for names in candidates for name in names))
    runtime = open_graph(_with_outputs(model, asked))
    results = run_graph(runtime, "random input", given)[len(model.graph.output) :]
    values = dict(zip(asked, results, strict=True))
    nearest = []
    for tensor, names, label in zip(expected, candidates, labels, strict=True):
        truth = array_of(tensor)
        fitting = [name for name in names if values[name].shape == truth.shape]
        if not fitting:
            raise InputError(
                f"the exported graph has no tensor {tuple(truth.shape)} to compare with {label!r}, which the network "
                "chooses its rows from",
                "Let the network return it, as torchvision:NAME?heads=true does.",
            )
        nearest.append(min(fitting, key=lambda name: float(np.abs(np.nan_to_num(values[name] - truth)).max(initial=0.0))))
    return nearest


def _inferred(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The tensors that nodes of the graph return, with their types."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    yield from (*graph.value_info, *graph.output)


def _shapes(model: onnx.ModelProto) -> Iterator[tuple[str, list[int | None]]]:
    """The sizes of these tensors as far as they are known; None is a free one."""
    for item in _inferred(model):
        kind = item.type.tensor_type
        if kind.HasField("shape"):
            yield item.name, [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]


def _may_be(shape: Sequence[int | None], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(one in (None, other) for one, other in zip(shape, wanted, strict=True))


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with these tensors as outputs after its own; one that is returned already is copied."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for number, name in enumerate(names):
        copied = f"{name}/observed_{number}"
        made.graph.node.append(onnx.helper.make_node("Identity", [name], [copied]))
        made.graph.output.append(onnx.helper.make_empty_tensor_value_info(copied))
    return made


def _fed(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with these tensors as further inputs instead of what it computes for them."""
    inferred = {item.name: item.type for item in _inferred(model)}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for name in names:
        made.graph.input.append(onnx.ValueInfoProto(name=name, type=inferred[name]))
        for node in made.graph.node:
            for place, result in enumerate(node.output):
                if result == name:
                    node.output[place] = f"{name}/computed"
    return made


def matched_rows(expected: Sequence[Array], actual: Sequence[Array]) -> tuple[int, int]:
    """How many rows of outputs that belong together are the same, and how many there are, each counted once.

    They are the boxes, scores and labels of a picture, for example, (n, …) and (m, …). All values of two rows agree within
    the tolerance, relative to the largest value of their output.
    """
    torchs, mine = (
        np.concatenate([_in_tolerances(one, truth) for one, truth in zip(arrays, expected, strict=True)], 1)
        for arrays in (expected, actual)
    )
    free, same = np.ones(len(mine), dtype=bool), 0
    few = slice(None, None, max(1, mine.shape[1] // _FEW_VALUES))
    for row in torchs:
        near = np.flatnonzero(free & (np.abs(mine[:, few] - row[few]) <= 1).all(1))
        counterpart = next((index for index in near if (np.abs(mine[index] - row) <= 1).all()), None)
        if counterpart is not None:
            free[counterpart], same = False, same + 1
    return same, len(mine) + len(torchs) - same


def _in_tolerances(rows: Array, truth: Array) -> Array:
    """Rows (n, …) as (n, values), in units of what may differ."""
    allowed = RELATIVE_TOLERANCE * max(float(np.abs(truth).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    rows = np.atleast_1d(rows)
    return np.nan_to_num(rows.reshape(len(rows), math.prod(rows.shape[1:]))) / allowed
