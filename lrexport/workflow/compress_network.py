"""``lrexport.compress``: compress a user's network in one call, without a run and without labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lrexport.artifacts import files
from lrexport.artifacts.plan_file import choices_in
from lrexport.config.compression import RANK_MULTIPLE, AskedScheme, CompressConfig
from lrexport.config.goals import AccuracyDrop, FromPlan, Goal, Latency
from lrexport.data.images import drawn
from lrexport.data.unlabelled import Given
from lrexport.errors import InputError, UsageError
from lrexport.events import ignore_events
from lrexport.formats.onnx import Exported, export_onnx
from lrexport.formats.opsets import FIRST_OPSET
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import inputs_of
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.costs import plan_cost, whole_cost
from lrexport.lowrank.selection.problem import Rule
from lrexport.lowrank.selection.solve import choose
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import parse_target
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.plan import Plan, PlannedLatency
from lrexport.runs.starting_point import decompose_file
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch, BatchLike, InputsLike, signature_of
from lrexport.torch_tools.copying import with_same_weights
from lrexport.torch_tools.tracing import like_weights, run_once
from lrexport.training.engine import with_float64
from lrexport.workflow.healing import Effort
from lrexport.workflow.healing import heal as heal_network
from lrexport.workflow.likeness import DenseOutputs
from lrexport.workflow.plan_outputs import PlanOutputs
from lrexport.workflow.pruning import on_target, pose, schemes_considered
from lrexport.workflow.repair import Repair
from lrexport.workflow.target_speed import measure_speed

# The command's defaults: images for weighting and refitting, and for BatchNorm statistics.
_CALIBRATION, _BATCHNORM = CompressConfig.calibration_images, CompressConfig.batchnorm_images
_USELESS = 1.0  # the output error of a network that returns the mean output whatever its input
_LEAST, _LEAST_HEALING = 2, 20  # inputs
_HEALING, _MOST_JUDGING, _MOST_HEALING_VALUES = 5000, 256, 1 << 28  # inputs, and their values: 1 GB
_UNKNOWN = "quality unknown: without calibration images nothing was fitted to data or compared"


@dataclass(frozen=True)
class Compressed:
    """A compressed network and its figures.

    ``network`` consists of plain torch.nn layers, in eval mode, on the model's device, and can be fine-tuned. MACs and
    parameters (``dense_…``: the model's) are for one sample of ``signature``; 1 MAC = 2 FLOPs. ``output_error`` is
    the squared difference from the model's outputs, relative to their variance, on the calibration images: 0 for equal
    outputs, None without images or where outputs cannot be compared. ``latency`` is set if the goal or ``target`` required
    a measurement. ``notes`` are sentences for the user.
    """

    network: nn.Module
    plan: Plan
    macs: int
    dense_macs: int
    params: int
    dense_params: int
    signature: Signature
    output_error: float | None = None
    latency: PlannedLatency | None = None
    notes: tuple[str, ...] = ()

    def export(
        self,
        path: str | Path,
        *,
        batch: int | None = 1,
        dynamic: Sequence[str] = (),
        opset: int = FIRST_OPSET,
        samples: BatchLike | None = None,
    ) -> Exported:
        """Write the network as one ONNX file, compared with torch; arguments and errors as for export_onnx."""
        return export_onnx(self.network, path, self.signature, batch=batch, dynamic=dynamic, opset=opset, samples=samples)

    def save_plan(self, path: str | Path) -> None:
        """Write the plan as JSON for FromPlan, ``--plan`` and rebuild. Raises InputError if ``path`` cannot be written."""
        files.write_bytes(Path(path), self.plan.to_json().encode())


def compress(
    model: nn.Module,
    example_inputs: InputsLike,
    goal: Goal,
    *,
    calibration: Tensor | Iterable[Any] | None = None,
    heal: float = 0.0,
    scheme: AskedScheme = "spatial",
    keep: Collection[str] = (),
    rule: Rule = "global",
    rank_multiple: int = RANK_MULTIPLE,
    target: str | None = None,
    threads: int = 1,
    seed: int = 0,
) -> Compressed:
    """Compress a trained network to ``goal``, without labels; ``model`` itself is not changed.

    ``example_inputs`` is a batch of inputs (B, …), of which only the shape is used, or the shape of one input, such as
    (3, 224, 224). Of a network with several
    inputs it is a tuple of batches, or a dict of them by name. ``goal`` is Macs, Params, Size, Latency, Energy or FromPlan.
    ``calibration`` holds preprocessed inputs without labels: a tensor (N, …), or a data set or an iterable of single
    inputs, of batches, or of pairs of these and labels, which are ignored. With calibration inputs, ranks are weighted by
    the layers' inputs, pairs are refitted to their layers' outputs, and BatchNorm statistics are re-estimated; a repair
    that increases the output error is undone. At most 1,000 inputs are used: drawn by ``seed`` from a tensor or a data
    set, the first ones of an iterable. ``heal`` minutes, at most, train the compressed network to follow ``model`` on up to
    5,000 of the inputs, of which a tenth, up to 256, judge it; 0 is no training. Where the time is enough for all steps, a
    seed gives the same network again.
    ``scheme`` "auto" takes each layer's cheapest; ``keep`` holds shell patterns of layers that stay dense; ``rule``
    and ``rank_multiple`` are as in select. ``target``, by default "local" for a goal of latency, is measured with
    ``threads`` threads.

    Raises UsageError for a goal out of reach, with the least that can be reached, and for a goal that needs labels;
    InputError if the network does not accept the inputs or a weight is not finite; DeviceError if the target cannot
    measure. Source: Yang et al. 2020, arXiv 2004.09031, and docs/python.md.
    """
    _check_goal(goal)
    if not isinstance(model, nn.Module):
        raise UsageError(f"invalid model of type {type(model).__name__}: expected a torch.nn.Module")
    signature = signature_of(example_inputs, model)
    with torch.compiler.set_stance("force_eager"):  # not worth compiling for one input
        run_once(model, signature)  # raises InputError; it also computes weights of hooks, needed before copying
    place = like_weights(model).device
    copied = with_same_weights(model)
    if isinstance(copied, OnnxNetwork):
        svd = decompose_file(copied, scheme, keep, "implicit")
    else:
        svd = decompose(copied, signature, scheme, keep, form="implicit")
    device = with_float64(place)
    svd.network.to(device)
    _check_healing(heal, calibrated=calibration is not None)
    images = None if calibration is None else _images(svd, calibration, device, seed, healed=heal > 0)
    choices = choices_in(goal.plan) if isinstance(goal, FromPlan) else None
    outputs = None if images is None else PlanOutputs(images, Repair(svd, images, True, _CALIBRATION, _BATCHNORM))
    problem = pose(svd, goal, scheme, rule, choices, images, _CALIBRATION, rank_multiple=rank_multiple, outputs=outputs)
    if target is not None or isinstance(goal, Latency):
        schemes, times = schemes_considered(svd, scheme, goal), LayerTimes(parse_target(target or "local"), threads)
        problem = on_target(problem, measure_speed(svd, schemes, times, ignore_events))
    selection = choose(goal, problem)
    network, error = _folded(svd, selection, images, Effort(heal, seed=seed))
    return Compressed(
        network.to(place).eval(),
        selection.plan,
        plan_cost(svd, selection.plan, "macs"),
        svd.dense_macs,
        plan_cost(svd, selection.plan, "params"),
        whole_cost(svd, "params"),
        signature,
        error,
        selection.latency,
        (*selection.warnings, *_remarks(error, calibrated=images is not None)),
    )


def _remarks(error: float | None, calibrated: bool) -> Iterator[str]:
    """What the user should know of the quality of the compressed network."""
    if not calibrated:
        yield _UNKNOWN
    elif error is None:
        yield "quality unknown: no part of the network has outputs of one shape for all inputs, so none were compared"
    elif not error <= _USELESS:
        shown = f"{error:.2f}" if math.isfinite(error) else "not finite"
        yield (
            f"the outputs are not usable as they are: their error is {shown}, and a constant output has {_USELESS:g}; "
            "choose a larger goal, or fine-tune the network"
        )


def _check_goal(goal: object) -> None:
    if isinstance(goal, AccuracyDrop):
        raise UsageError(
            "AccuracyDrop needs labelled images, which lrexport.compress does not take",
            "Give lrexport.Macs(0.5) and score result.network, or run lrexport compress MODEL --data … --accuracy-drop 1.",
        )
    if not isinstance(goal, get_args(Goal)):
        known = ", ".join(kind.__name__ for kind in get_args(Goal))
        raise UsageError(f"invalid goal {goal!r}: expected one of {known}", "For example lrexport.Macs(0.5).")


def _check_healing(minutes: float, calibrated: bool) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes >= 0:
        raise UsageError(f"invalid heal {minutes!r}: expected minutes, 0 or more", "For example compress(…, heal=2).")
    if minutes and not calibrated:
        raise UsageError("heal requires calibration inputs", "Give a few thousand inputs, without labels, as calibration.")


def _images(svd: SVDNetwork, calibration: object, device: torch.device, seed: int, healed: bool) -> Given:
    """The calibration inputs to use, in the network's precision; more if they heal. Raises UsageError and InputError."""
    values = sum(math.prod(spec.shape) for spec in svd.signature)  # of one sample
    least, most = _LEAST, _BATCHNORM
    if healed:
        least, most = _LEAST_HEALING, max(_BATCHNORM, min(_HEALING, _MOST_HEALING_VALUES // values))
    batches, count = list[Batch](), 0
    for batch in _batches(calibration, most, seed):
        inputs = _with_batch_axis(inputs_of(batch, svd.signature), svd.signature)
        batches.append(inputs)
        count += len(inputs)
        if not isinstance(calibration, Tensor) and count >= most:
            break
    if count < least:
        what = "invalid calibration" if least == _LEAST else "invalid calibration for heal"
        raise UsageError(f"{what}: expected at least {least} inputs, not {count}", "A few hundred are enough.")
    dtype = like_weights(svd.network).dtype
    whole = Batch.cat(batches).map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return Given(whole, device, seed)


def _with_batch_axis(batch: Batch, signature: Signature) -> Batch:
    """The inputs, (N, …) each; a single sample gets the axis. Raises InputError where they are not of the signature."""
    if all(tuple(tensor.shape) == spec.shape for tensor, spec in zip(batch.tensors, signature, strict=True)):
        batch = batch.map(lambda tensor: tensor.unsqueeze(0))
    for tensor, spec in zip(batch.tensors, signature, strict=True):
        of = "" if len(signature) == 1 else f" for {spec.name!r}"
        if tuple(tensor.shape[1:]) != spec.shape or not tensor.ndim:
            expected = ", ".join(map(str, ("N", *spec.shape)))
            raise InputError(f"invalid calibration inputs{of} of shape {tuple(tensor.shape)}: expected ({expected})")
        if spec.is_float and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"invalid calibration inputs{of} of {kind}: expected floats", "Preprocess them as for the network."
            )
    return batch


def _batches(calibration: Any, most: int, seed: int) -> Iterable[Any]:
    """A tensor as one batch, random items of a data set, or the items of an iterable. Raises UsageError."""
    if isinstance(calibration, Tensor):
        return [calibration]
    if isinstance(calibration, Iterable):
        return calibration
    if not hasattr(calibration, "__getitem__") or not hasattr(calibration, "__len__"):
        raise UsageError(
            f"invalid calibration of type {type(calibration).__name__}: expected a tensor (N, …) or an iterable of batches"
        )
    return (calibration[index] for index in drawn(len(calibration), most, seed).tolist())


def _folded(svd: SVDNetwork, selection: Selection, images: Given | None, effort: Effort) -> tuple[nn.Module, float | None]:
    """The folded network, repaired and healed if there are images, and its output error against the dense network."""
    network = fold(svd, selection)
    if images is None:
        return network, None
    dense = DenseOutputs(svd, images, _CALIBRATION)
    scores = Repair(svd, images, True, _CALIBRATION, _BATCHNORM).apply(network, selection, dense.likeness_of)
    error: float | None = -max(scores.values())  # of the network after the last repair that was kept
    if effort.minutes:
        dense_network = fold(svd, Plan())
        heal_network(network, dense_network.eval(), *_divided(images, effort.seed), effort)
        error = dense.error_of(network)
    return network, error if error is not None and math.isfinite(error) else dense.error_of(network)


def _divided(images: Given, seed: int) -> tuple[Given, Given]:
    """Inputs to heal with, and inputs to judge it by: the last ones drawn, so that repairs use few of them or none."""
    order = drawn(len(images), len(images), seed)
    judging = max(2, min(_MOST_JUDGING, len(images) // 10))
    parts = order[:-judging][:_HEALING], order[-judging:]
    learning, judged = (Given(images.inputs[part], images.device, images.seed) for part in parts)
    return learning, judged
