"""Samples as users' callables give them: an input or several, with or without a target, as a network takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrexport.errors import InputError
from lrexport.signature import InputSpec, Signature
from lrexport.torch_tools.batch import Batch

TARGETS = ("target", "targets", "label", "labels")
FORMS = "an input; a tuple or a dict of inputs by name; or (inputs, target)"


class NotASample(InputError):
    """What a data set gives is no sample for this network; the message continues a sentence about it."""


def parts_of(item: Any, signature: Signature) -> tuple[dict[str, Any], Any]:
    """Inputs by name, and the target or None, of a sample or a batch: see :data:`FORMS`.

    A tuple of as many tensors as the network has inputs is these inputs; with one more thing, that is the target.
    Raises NotASample.
    """
    count, names = len(signature), signature.names
    if isinstance(item, Mapping):
        return _of_mapping(item, signature)
    if not isinstance(item, list | tuple):
        if count == 1:
            return {names[0]: item}, None
        raise NotASample(f"is one {kind_of(item)}; the network takes {count} inputs: {signature}", _hint())
    values = tuple(item)
    if len(values) == count and (count == 1 or all(is_array(value) for value in values)):
        return dict(zip(names, values, strict=True)), None
    if len(values) == 2 and (count == 1 or isinstance(values[0], list | tuple | Mapping)):
        inputs, none = parts_of(values[0], signature)
        if none is None:
            return inputs, values[1]
    if len(values) == count + 1:
        return dict(zip(names, values[:count], strict=True)), values[count]
    raise NotASample(f"has {len(values)} parts; the network takes {signature}", _hint())


def _of_mapping(item: Mapping[Any, Any], signature: Signature) -> tuple[dict[str, Any], Any]:
    names = signature.names
    said = {str(key): value for key, value in item.items()}
    targets = [name for name in TARGETS if name in said and name not in names]
    rest = {name: value for name, value in said.items() if name not in targets}
    target = said[targets[0]] if targets else None
    if len(targets) < 2 and len(names) == 1 and len(rest) == 1:
        return {names[0]: next(iter(rest.values()))}, target
    if len(targets) > 1 or set(rest) != set(names):
        raise NotASample(
            f"has {', '.join(map(repr, said))}; the network takes {', '.join(map(repr, names))}",
            "Name the inputs as the network does, and a target 'target'.",
        )
    return {name: rest[name] for name in names}, target


def is_array(value: Any) -> bool:
    """Whether it is a tensor, an array of numbers, or a number."""
    return isinstance(value, Tensor | np.ndarray | np.generic | int | float)


def as_tensor(value: Any) -> Tensor:
    """A tensor of an array, a number or a tensor. Raises NotASample for anything else, also arrays of objects."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            array = array.astype(np.int64)
        elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if isinstance(value, int | float):
        return torch.tensor(value)
    raise NotASample(f"has {kind_of(value)}; expected a tensor or an array of numbers", _hint())


def is_picture(tensor: Tensor, spec: InputSpec, signature: Signature) -> bool:
    """Whether a tensor (C, H, W) has the pixels of a picture, to be normalised for the network's only input."""
    return tensor.dtype == torch.uint8 and signature.takes_images and tuple(tensor.shape) == spec.shape


def checked(tensor: Tensor, spec: InputSpec, signature: Signature) -> Tensor:
    """An input of one sample in the dtype that the network takes, pictures as uint8.

    Raises NotASample if its shape, its kind of number or a NaN makes it unusable.
    """
    if is_picture(tensor, spec, signature):
        return tensor
    return _typed(tensor, spec.shape, spec, signature)


def batch_of(inputs: Mapping[str, Any], signature: Signature) -> Batch:
    """Inputs of several samples, (B, …) each, in the dtypes that the network takes, pictures as uint8. Raises NotASample."""
    tensors = [as_tensor(inputs[spec.name]) for spec in signature]
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if lengths == {0}:
        raise NotASample("has inputs without samples", "The first axis is the samples.")
    if len(lengths) != 1:
        shown = ", ".join(f"{spec.name} {tuple(each.shape)}" for spec, each in zip(signature, tensors, strict=True))
        raise NotASample(f"has inputs that differ in their number of samples: {shown}", "The first axis is the samples.")
    made = []
    for spec, tensor in zip(signature, tensors, strict=True):
        is_pixels = is_picture(tensor[0], spec, signature)
        made.append(tensor if is_pixels else _typed(tensor, (len(tensor), *spec.shape), spec, signature))
    return Batch(tuple(made), signature.names)


def _typed(tensor: Tensor, shape: tuple[int, ...], spec: InputSpec, signature: Signature) -> Tensor:
    """The tensor in the dtype of ``spec``. Raises NotASample for another shape, another kind of number, or NaN."""
    name = "" if len(signature) == 1 else f" of {spec.name!r}"
    given = f"is {tensor.dtype}" if len(signature) == 1 else f"has {spec.name!r} as {tensor.dtype}"
    if tuple(tensor.shape) != shape:
        expected = f"uint8 {shape}" if signature.takes_images and tensor.dtype == torch.uint8 else f"{shape}"
        turned = tensor.ndim > 2 and (*tensor.shape[:-3], tensor.shape[-1], *tensor.shape[-3:-1]) == shape
        raise NotASample(
            f"{given} {tuple(tensor.shape)}; expected {expected}",
            "The channels come first: (C, H, W)."
            if turned
            else "Give data that fits the network, or another --input-shape.",
        )
    if spec.is_float:
        if not tensor.is_floating_point():
            pixels = ", or uint8 pictures (C, H, W)" if signature.takes_images else ""
            raise NotASample(f"{given}; expected floats{pixels}", "Preprocess it as for the network.")
        if not bool(tensor.isfinite().all()):
            bad = int(tensor.numel() - tensor.isfinite().sum())
            raise NotASample(f"has NaN or infinity in {bad:,} of {tensor.numel():,} values{name}", "Leave out such samples.")
        made: Tensor = tensor.to(torch.float32 if spec.dtype is None else getattr(torch, spec.dtype))
        if made.dtype != tensor.dtype and not bool(made.isfinite().all()):
            raise NotASample(f"has values{name} beyond {str(made.dtype).removeprefix('torch.')}", "Scale them.")
        return made
    if tensor.is_floating_point():
        raise NotASample(f"{given}; expected {spec.dtype}", "Give whole numbers, or another type with --input.")
    if spec.low is not None and spec.high is not None and tensor.numel():
        low, high = int(tensor.min()), int(tensor.max())
        if low < spec.low or high > spec.high:
            raise NotASample(f"has values{name} from {low} to {high}; expected {spec.low:g} to {spec.high:g}")
    return tensor.to(getattr(torch, str(spec.dtype)))


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        name = "array" if isinstance(value, np.ndarray) else "tensor"
        return f"{name} of {value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def _hint() -> str:
    return f"A sample is {FORMS}."
