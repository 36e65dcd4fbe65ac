"""A few held-out pictures with the outputs of the dense and the compressed network, for the report of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.artifacts.run_files import EXAMPLES
from lrexport.config.compression import CompressConfig
from lrexport.data.images import ImageData, ImageSet, drawn
from lrexport.errors import InputError
from lrexport.events import Warned, Working
from lrexport.runs.examples import About, Example, Examples, Reason, RecordedMetric, Said
from lrexport.runs.open import OpenRun
from lrexport.tasks.fidelity import decibels
from lrexport.tasks.scoring import measuring
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import named_tensors
from lrexport.workflow.shown_outputs import (
    Shown,
    boxes,
    guesses,
    input_picture,
    mask_of,
    pictures,
    probabilities,
    shown,
    target_mask,
)

# Samples among which the worst are looked for: as many as take some seconds.
_MOST_SAMPLES, _LEAST_SAMPLES, _MACS = 128, 16, 5e10
_MOST_NAMED = 8  # outputs whose SQNR is shown


@dataclass(frozen=True)
class _Pair:
    """Both networks' outputs for one sample, (1, …) each, with its input and its target."""

    batch: Batch
    target: Any
    dense: Any
    compressed: Any


def examples_of(run: OpenRun[CompressConfig], dense: nn.Module, compressed: nn.Module, dense_macs: int) -> dict[str, bytes]:
    """The content of the run's file of examples by its name; empty where there are no pictures, or none are asked for."""
    splits, config = run.splits, run.request.config
    if splits is None or not config.examples:
        return {}
    run.on_event(Working("saving a few held-out pictures with the outputs of both networks"))
    places = splits.data, splits.heldout, run.task, run.fabric.device, config.examples, config.train.seed
    try:
        made = make_examples(dense, compressed, *places, dense_macs)
    except InputError as error:  # no reason to lose the compressed network
        run.on_event(Warned(f"no pictures for the report: {error.message}"))
        return {}
    return {} if made is None else {EXAMPLES: made.packed()}


def make_examples(
    dense: nn.Module,
    compressed: nn.Module,
    data: ImageData,
    heldout: ImageSet,
    task: Task | None,
    device: torch.device,
    most: int,
    seed: int,
    dense_macs: int,
) -> Examples | None:
    """At most ``most`` held-out samples: the worst ones, and others drawn by ``seed``; None where there are no pictures.

    The worst lose most of the task's metric, then of the true class's probability, then of the SQNR of the outputs.
    """
    signature = heldout.signature
    if not most or not len(heldout) or not signature.takes_images or signature.shape[0] not in (1, 3):
        return None
    count = int(min(_MOST_SAMPLES, max(_LEAST_SAMPLES, _MACS // max(1, dense_macs))))
    order = drawn(len(heldout), max(count, most), seed)
    considered = heldout.subset(order)
    networks = dense.to(device), compressed.to(device)
    losses = [_loss(pair, task) for pair in _pairs(*networks, considered, task, device)]
    ranked = sorted(range(len(losses)), key=losses.__getitem__, reverse=True)
    worst = ranked[: most // 2]
    random = [place for place in range(len(losses)) if place not in worst][: most - len(worst)]
    chosen = [*random, *worst]
    made, pixels = [], dict[str, Any]()
    for place, pair in enumerate(_pairs(*networks, considered.subset(torch.tensor(chosen)), task, device)):
        why: Reason = "random" if place < len(random) else "worst"
        facts, parts = _example(pair, data, task)
        made.append(Example(number=int(order[chosen[place]]), why=why, **facts))
        pixels |= {f"{place}.{name}": values for name, values in parts.items()}
    metric = None
    if task is not None:
        metric = RecordedMetric(name=task.metric.name, unit=task.metric.unit, higher_is_better=task.metric.higher_is_better)
    return Examples(About(considered=len(losses), metric=metric, examples=tuple(made)), pixels)


@torch.no_grad()
def _pairs(
    dense: nn.Module, compressed: nn.Module, samples: ImageSet, task: Task | None, device: torch.device
) -> Iterator[_Pair]:
    with eval_mode(dense), eval_mode(compressed):
        for batch, given in samples.batches(1, device):
            target = given if task is None or task.follows_dense else task.targets_of(batch, given)
            yield _Pair(batch, target, run(dense, batch.clone()), run(compressed, batch.clone()))


def _loss(pair: _Pair, task: Task | None) -> tuple[float, float, float]:
    """What the compressed network loses on a sample: of the metric, of the true class's probability, of the SQNR."""
    before, after = _scores(pair, task)
    lost = task.metric.loss(before, after) if task is not None and before is not None and after is not None else 0.0
    ratios = sqnr(pair.dense, pair.compressed)
    return lost, _lost_share(pair, task), -min(ratios.values(), default=0.0)


def _lost_share(pair: _Pair, task: Task | None) -> float:
    label = _label(pair.target)
    first, second = (_shown(outputs, pair, task) for outputs in (pair.dense, pair.compressed))
    if label is None or first.form != "classes" or second.form != "classes":
        return 0.0
    both = [probabilities(each.value) for each in (first, second)]
    return float(both[0][label] - both[1][label]) if label < len(both[0]) else 0.0


def _scores(pair: _Pair, task: Task | None) -> tuple[float | None, float | None]:
    """The metric of both networks on one sample; None where it has no finite value, as mAP without any box."""
    if task is None:
        return None, None
    if task.follows_dense:
        return None, _score(task, pair.compressed, pair.dense)
    return _score(task, pair.dense, pair.target), _score(task, pair.compressed, pair.target)


def _score(task: Task, outputs: Any, target: Any) -> float | None:
    try:
        with measuring(task):
            meter = task.meter()
            meter.update(outputs, target)
            value = float(meter.compute()[task.metric.name])
    except (InputError, KeyError):  # a meter of the user may need more than one sample
        return None
    return value if math.isfinite(value) else None


def sqnr(dense: Any, compressed: Any) -> dict[str, float]:
    """Of every output of floats that has the same shape in both, by name, in dB."""
    before, after = named_tensors(dense), named_tensors(compressed)
    ratios = {}
    for name, truth in before.items():
        mine = after.get(name)
        if mine is None or mine.shape != truth.shape or not truth.is_floating_point() or not truth.numel():
            continue
        wide = truth.detach().cpu().double()
        noise = float((mine.detach().cpu().double() - wide).square().sum())
        ratios[name] = round(decibels(float(wide.square().sum()), noise), 2)
    return ratios


def _shown(outputs: Any, pair: _Pair, task: Task | None) -> Shown:
    return shown(outputs, task.name if task is not None else "", pair.batch.tensors[0])


def _example(pair: _Pair, data: ImageData, task: Task | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of an example for the record, and its pixels."""
    image = pair.batch.tensors[0][0]
    picture, stretched = input_picture(image, data.preprocessing)
    before, after = _scores(pair, task)
    both = {"dense": _shown(pair.dense, pair, task), "compressed": _shown(pair.compressed, pair, task)}
    form = both["dense"].form if both["dense"].form == both["compressed"].form else "values"
    facts: dict[str, Any] = {"form": form, "label": _label(pair.target), "stretched": stretched}
    facts |= {"dense_score": before, "score": after}
    if form != "boxes":
        ratios = sqnr(pair.dense, pair.compressed)
        facts["sqnr_db"] = dict(list(ratios.items())[:_MOST_NAMED])
    values = {name: each.value for name, each in both.items()}
    parts: dict[str, Any] = {"picture": picture}
    if form == "classes":
        facts |= {name: Said(guesses=guesses(value)) for name, value in values.items()}
    elif form == "boxes":
        facts |= {name: boxes(value, image) for name, value in values.items()}
        target = pair.target[0] if isinstance(pair.target, list | tuple) and pair.target else None
        if isinstance(target, Mapping) and "boxes" in target and "labels" in target:
            facts["target"] = boxes({name: target[name] for name in ("boxes", "labels")}, image)
    elif form == "masks":
        size = picture.shape[:2]
        parts |= {name: mask_of(value, size) for name, value in values.items()}
        if isinstance(pair.target, Tensor) and pair.target.ndim == 3 and not pair.target.is_floating_point():
            parts["target"] = target_mask(pair.target[0], size)
    elif form == "pictures":
        if isinstance(pair.target, Tensor) and pair.target.shape == values["dense"].shape:
            values["target"] = pair.target
        made, guessed = pictures(values, data.preprocessing)
        parts |= made
        facts["stretched"] = stretched or guessed
    return facts, parts


def _label(target: Any) -> int | None:
    """The class of the sample, if that is its target."""
    is_class = isinstance(target, Tensor) and target.shape == (1,) and not target.is_floating_point()
    return int(target[0]) if is_class else None
