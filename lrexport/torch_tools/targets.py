"""Targets of a batch, in whatever form the data gives them: a tensor, a dict, one item for each sample, or None."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor


def split_targets(targets: Any, sizes: Sequence[int]) -> Iterator[Any]:
    """The targets of a batch of ``sum(sizes)`` samples, in parts of these sizes."""
    ends = list(accumulate(sizes))
    for size, end in zip(sizes, ends, strict=True):
        yield part_of(targets, slice(end - size, end), ends[-1])


def part_of(targets: Any, part: slice, count: int) -> Any:
    """The targets of some of ``count`` samples.

    A list or tuple with an item for each sample is cut; one of tensors (count, …), as torch collates pairs, is not.
    """
    if isinstance(targets, Tensor):
        return targets[part]
    if isinstance(targets, Mapping):
        return {key: part_of(value, part, count) for key, value in targets.items()}
    if isinstance(targets, list | tuple):
        if all(isinstance(each, Tensor) and each.ndim and len(each) == count for each in targets):
            return type(targets)(each[part] for each in targets)
        return targets[part]
    return targets
