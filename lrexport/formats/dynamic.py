"""Axes of inputs that a file leaves free: which they are, and the other sizes at which such a file is compared with torch.

torch's exporter also writes graphs with free sizes for networks that work at one size only, or whose forward takes another
branch at others. So a file counts as free in an axis only after it agreed with torch at sizes that torch itself accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lrexport.config.export_options import BATCH, DYNAMIC, check_dynamic
from lrexport.errors import InputError, UsageError
from lrexport.signature import Signature
from lrexport.text import first_line
from lrexport.torch_tools.batch import call
from lrexport.torch_tools.tracing import noise

# Networks that halve sizes and put them together again take multiples only.
_STEPS = (1, 2, 4, 8, 16, 32, 64)
# How many steps other sizes differ by: not all by the same, so that a swap of height and width is noticed.
_TIMES = {"height": 1, "width": 2, "length": 1}

Axes = Mapping[int, str]  # of one input with its batch: the names of the free ones


@dataclass(frozen=True)
class FreeAxes:
    """The free axes of each input. Sizes of inputs differ from the network's own by multiples of ``step``.

    ``others`` are inputs of other sizes that the network accepts.
    """

    inputs: tuple[Axes, ...] = ()
    step: int = 1
    others: tuple[Signature, ...] = ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of all but the batch."""
        named = {name for axes in self.inputs for name in axes.values()} - {BATCH}
        return tuple(name for name in DYNAMIC if name in named)


FIXED = FreeAxes()  # every size is the network's own


def free_axes(network: nn.Module, signature: Signature, dynamic: Sequence[str], channels_last: bool = False) -> FreeAxes:
    """The axes of ``dynamic``, names of DYNAMIC, in the inputs of a network in eval mode.

    Height and width are the last two axes of images, inputs (C, H, W), or (H, W) where there are none, and the first two of
    (H, W, C) with ``channels_last``; the length is the
    last axis of sequences, (C, L) or (L), or the first of (L, C) where the network only accepts others there. Inputs of
    other sizes than the first of their kind stay fixed. Raises UsageError for an axis that no input has, InputError if the
    network accepts no other sizes.
    """
    names = check_dynamic(dynamic)
    batch = {0: BATCH} if BATCH in names else {}
    asked = [name for name in names if name != BATCH]
    if not asked:
        return FreeAxes(tuple(dict(batch) for _ in signature))
    reasons: list[str] = []
    for axes in _candidates(signature, asked, channels_last):
        for step in _STEPS:
            near, half = [_resized(signature, axes, change) for change in (step, -step)], _halved(signature, axes, step)
            others = list(_accepted(network, signature, near, reasons))
            if others:
                others += _accepted(network, signature, [half], reasons)
                return FreeAxes(tuple({**batch, **each} for each in axes), step, tuple(dict.fromkeys(others)))
    text = " and ".join(asked)
    raise InputError(
        f"the network accepts no other {text} than its own, {signature}: {reasons[0]}",
        f"Export it without --dynamic {','.join(asked)}, or make its forward independent of sizes: with adaptive pooling "
        "before linear layers, for example.",
    )


def _candidates(signature: Signature, asked: Sequence[str], channels_last: bool) -> Iterator[tuple[Axes, ...]]:
    """Places of the axes in the inputs, the likeliest first. Raises UsageError for an axis that no input has."""
    images = _alike(signature, range(3, 99), 2) or _alike(signature, range(2, 3), 2)
    in_images = [name for name in asked if name in ("height", "width")]
    if in_images and not images:
        raise _missing(in_images[0], signature)
    axes: list[dict[int, str]] = [{} for _ in signature]
    for number in images if in_images else ():
        count = len(signature.inputs[number].shape) - channels_last
        axes[number] = {count - ("height", "width")[::-1].index(name): name for name in in_images}
    if "length" not in asked:
        yield tuple(axes)
        return
    taken = set(images) if in_images else set[int]()
    sequences = [number for kind in (2, 1) for number in _alike(signature, range(kind, kind + 1), 1) if number not in taken]
    if not sequences:
        raise _missing("length", signature)
    count = len(signature.inputs[sequences[0]].shape)
    chosen = [number for number in sequences if len(signature.inputs[number].shape) == count]
    for place in range(count, 0, -1):
        yield tuple({place: "length"} if number in chosen else each for number, each in enumerate(axes))


def _alike(signature: Signature, counts: range, last: int) -> list[int]:
    """Inputs with so many axes, of the same last ``last`` sizes as the first of them."""
    numbers = [number for number, spec in enumerate(signature) if len(spec.shape) in counts]
    shapes = [spec.shape for spec in signature]
    return [number for number in numbers if shapes[number][-last:] == shapes[numbers[0]][-last:]]


def _missing(name: str, signature: Signature) -> UsageError:
    return UsageError(
        f"no input of the network has a {name}: it takes {signature}",
        "Height and width are the last two axes of (C, H, W), length is the last of (C, L) or (L).",
    )


def _resized(signature: Signature, axes: Sequence[Axes], change: int) -> Signature | None:
    """Inputs whose free sizes differ by ``change``, the width by twice that; None if a size would vanish."""
    return _with_sizes(signature, axes, lambda name, size: size + change * _TIMES[name])


def _halved(signature: Signature, axes: Sequence[Axes], step: int) -> Signature | None:
    """Inputs of about half the free sizes, some multiple of ``step`` less."""
    return _with_sizes(signature, axes, lambda _name, size: size - size // (2 * step) * step)


def _with_sizes(signature: Signature, axes: Sequence[Axes], change: Callable[[str, int], int]) -> Signature | None:
    made = []
    for spec, free in zip(signature, axes, strict=True):
        sizes = list(spec.shape)
        for axis, name in free.items():
            sizes[axis - 1] = change(name, sizes[axis - 1])
        if min(sizes, default=1) < 1:
            return None
        made.append(replace(spec, shape=tuple(sizes)))
    return Signature(tuple(made))


@torch.no_grad()
def _accepted(
    network: nn.Module, own: Signature, others: Sequence[Signature | None], reasons: list[str]
) -> Iterator[Signature]:
    """Those of ``others`` that the network accepts; adds to ``reasons`` why it does not accept the rest."""
    for other in others:
        if other is None or other == own:
            continue
        try:
            call(network, noise(network, other, samples=2))
        except Exception as error:  # whatever the network's code raises
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
        else:
            yield other
