"""Inputs and outputs of a network for one sample as pictures, classes and boxes that a reader can look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.config.task_names import CLASSIFICATION
from lrexport.data.targets import DETECTION, IMAGE, SEGMENTATION
from lrexport.preprocessing import Preprocessing
from lrexport.runs.examples import LEAST_SCORE, MOST_BOXES, MOST_GUESSES, NOT_COUNTED, SIDE, Box, Form, Guess, Said
from lrexport.tasks.distillation import is_class_scores
from lrexport.tasks.segmentation import IGNORED
from lrexport.torch_tools.outputs import flat_tensors

_ASKED: Mapping[str, Form] = {CLASSIFICATION: "classes", SEGMENTATION: "masks", DETECTION: "boxes", IMAGE: "pictures"}
_MAIN = ("logits", "out")  # among several outputs, as Hugging Face and torchvision name them
_CHANNELS = (1, 3)  # of pictures
_BEYOND = 0.1  # of the range from 0 to 1: how far a network's picture may leave it


@dataclass(frozen=True)
class Shown:
    """What is shown of an output: its form, and the tensor of it, or the dict of a detector's boxes."""

    form: Form
    value: Any = None


def shown(outputs: Any, task: str, picture: Tensor) -> Shown:
    """The part of the outputs for one sample that can be shown; ``task`` decides where it is one of lrexport's.

    Without such a task the shape decides: (1, K) are scores of classes, (1, 1, H, W) and (1, 3, H, W) pictures, other maps
    scores of each pixel's classes.
    """
    for candidate in _candidates(outputs):
        form = _form_of(candidate, picture)
        if form is not None and _ASKED.get(task, form) == form:
            return Shown(form, candidate)
        if form == "pictures" and task == SEGMENTATION and candidate.shape[1] > 1:
            return Shown("masks", candidate)
    return Shown("values")


def _candidates(outputs: Any) -> Iterator[Any]:
    """A detector's boxes, then the outputs of usual names, then all."""
    if isinstance(outputs, list | tuple) and len(outputs) == 1 and isinstance(outputs[0], Mapping):
        yield outputs[0]
    if isinstance(outputs, Mapping):
        yield from (outputs[name] for name in _MAIN if isinstance(outputs.get(name), Tensor))
    yield from flat_tensors(outputs)


def _form_of(value: Any, picture: Tensor) -> Form | None:
    if isinstance(value, Mapping):
        return "boxes" if all(isinstance(value.get(name), Tensor) for name in ("boxes", "scores", "labels")) else None
    if is_class_scores(value) and len(value) == 1:
        return "classes"
    if value.ndim != 4 or len(value) != 1 or not value.is_floating_point():
        return None
    if value.shape[1] in _CHANNELS:
        return "pictures" if min(value.shape[-2:]) >= min(picture.shape[-2:]) // 2 else None
    return "masks" if value.shape[1] <= NOT_COUNTED else None


def guesses(scores: Tensor) -> tuple[Guess, ...]:
    """The most probable classes for scores (1, K)."""
    best = probabilities(scores).topk(min(MOST_GUESSES, scores.shape[1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(label=label, share=min(1.0, max(0.0, share))) for label, share in pairs)


def probabilities(scores: Tensor) -> Tensor:
    """(K,) for scores (1, K): those that are probabilities already stay as they are."""
    row = torch.nan_to_num(scores[0].detach().float().cpu())
    are_shares = bool((row >= 0).all()) and abs(float(row.sum()) - 1) < 1e-3
    return row if are_shares else row.softmax(0)


def boxes(found: Mapping[str, Any], picture: Tensor) -> Said:
    """The boxes of a detector or of a target, best first; of a detector only those that score enough."""
    height, width = picture.shape[-2:]
    corners, labels = (torch.as_tensor(found[name]).detach().cpu() for name in ("boxes", "labels"))
    scores = found.get("scores")
    if scores is not None:
        scores = torch.nan_to_num(scores.detach().float().cpu())
        kept = scores.argsort(descending=True)
        kept = kept[scores[kept] >= LEAST_SCORE]
    else:
        kept = torch.arange(len(corners))
    scale = torch.tensor([width, height, width, height])
    shares = torch.nan_to_num(corners.float().reshape(-1, 4) / scale).clamp(0, 1)
    made = tuple(
        Box(
            corners=tuple(shares[index].tolist()),
            label=int(labels[index]),
            score=None if scores is None else round(float(scores[index]), 4),
        )
        for index in kept[:MOST_BOXES].tolist()
    )
    return Said(boxes=made, more=max(0, len(kept) - MOST_BOXES))


def mask_of(maps: Tensor, size: tuple[int, int]) -> Any:
    """The class of each pixel, (H, W) uint16 of ``size``, for scores (1, K, h, w)."""
    scores = maps.detach().float().cpu()
    if tuple(scores.shape[-2:]) != size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    return scores.argmax(1)[0].numpy().astype(np.uint16)


def target_mask(mask: Tensor, size: tuple[int, int]) -> Any:
    """A mask (H, W) of classes at the size of the picture."""
    values = mask.detach().cpu().long().numpy()
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    sized = values[rows][:, columns]
    return np.where((sized == IGNORED) | (sized < 0) | (sized > NOT_COUNTED), NOT_COUNTED, sized).astype(np.uint16)


def input_picture(image: Tensor, preprocessing: Preprocessing | None) -> tuple[Any, bool]:
    """An input (C, H, W) as it was before its preprocessing, (h, w, 3) uint8, and whether its range had to be guessed.

    Without preprocessing values from about 0 to 1 are taken as they are, and others are stretched.
    """
    values = image.detach().float().cpu()
    if preprocessing is None or len(preprocessing.mean) != len(values):
        low, high, stretched = _range_of(values)
        return as_pixels(values, low, high), stretched
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    low, high = preprocessing.value_range
    return as_pixels(_ordered(values * std + mean, preprocessing), low, high), False


def pictures(values: Mapping[str, Tensor], preprocessing: Preprocessing | None) -> tuple[dict[str, Any], bool]:
    """Pictures (1, C, H, W) that networks return, (h, w, 3) uint8, all in the same range; and whether it had to be guessed.

    Values from about 0 to 1 are taken as they are; others are stretched from the least to the greatest of the dense
    network's.
    """
    planes = {name: _ordered(value[0].detach().float().cpu(), preprocessing) for name, value in values.items()}
    low, high, stretched = _range_of(planes["dense"])
    return {name: as_pixels(value, low, high) for name, value in planes.items()}, stretched


def _range_of(values: Tensor) -> tuple[float, float, bool]:
    """From 0 to 1 if the values hardly leave it, else from the least to the greatest, which is a guess."""
    known = torch.nan_to_num(values)
    low, high = float(known.min()), float(known.max())
    return (0.0, 1.0, False) if low >= -_BEYOND and high <= 1 + _BEYOND else (low, high, True)


def _ordered(values: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """RGB instead of the channel order of the network."""
    return values.flip(0) if preprocessing is not None and preprocessing.channels == "bgr" and len(values) == 3 else values


def as_pixels(values: Tensor, low: float, high: float) -> Any:
    """(C, H, W) between ``low`` and ``high`` → (h, w, 3) uint8 of at most SIDE pixels a side."""
    scaled = (torch.nan_to_num(values) - low) * (255 / (high - low if high > low else 1))
    height, width = values.shape[-2:]
    most = max(height, width)
    if most > SIDE:
        size = max(1, round(height * SIDE / most)), max(1, round(width * SIDE / most))
        scaled = F.interpolate(scaled[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    pixels = scaled.round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(3, *pixels.shape[-2:]).permute(1, 2, 0).contiguous().numpy()
