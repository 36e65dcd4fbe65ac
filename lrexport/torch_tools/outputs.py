"""What networks return: trees of tensors, and how the tensors in them are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

OUTPUT = "output"  # how the only tensor of an output is called


def flat_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or outputs, in their order."""
    return (tensor for _, tensor in _walk(value, ()))


def named_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by name: ``output``, ``output_0``, or by the keys and fields that hold them."""
    tensors = list(_walk(output, ()))
    if isinstance(output, Tensor):
        return {OUTPUT: output}
    if isinstance(output, list | tuple) and len(output) == 1 and not _is_named(output):
        tensors = [(path[1:], tensor) for path, tensor in tensors]  # detectors return a list of one dict for one image
    named: dict[str, Tensor] = {}
    for path, tensor in tensors:
        name = _name(path)
        while name in named:
            name += "_"
        named[name] = tensor
    return named


def siblings(output: Any) -> list[list[int]]:
    """Places, in the order of :func:`flat_tensors`, of tensors that the same dict, list or other part of a tree holds."""
    groups: dict[tuple[str | int, ...], list[int]] = {}
    for number, (path, _) in enumerate(_walk(output, ())):
        groups.setdefault(path[:-1], []).append(number)
    return list(groups.values())


def _name(path: tuple[str | int, ...]) -> str:
    parts = path if path and isinstance(path[0], str) else (OUTPUT, *path)
    return "_".join(map(str, parts))


def refilled(output: Any, tensors: Iterator[Tensor]) -> Any:
    """A tree like ``output`` with ``tensors``, in the order of :func:`flat_tensors`, in the places of its own."""
    if isinstance(output, Tensor):
        return next(tensors)
    if is_dataclass(output) and not isinstance(output, type) and not isinstance(output, Mapping):
        return replace(output, **{each.name: refilled(getattr(output, each.name), tensors) for each in fields(output)})
    if isinstance(output, Mapping):
        made = {key: refilled(each, tensors) for key, each in output.items()}
        return made if type(output) is dict else type(output)(**made)
    if _is_named(output):
        return type(output)(*(refilled(each, tensors) for each in output))
    if isinstance(output, list | tuple):
        return type(output)(refilled(each, tensors) for each in output)
    return output


def _walk(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):  # Hugging Face's outputs are mappings and dataclasses, some with fields of None
        for key, part in value.items():
            yield from _walk(part, (*path, str(key)))
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from _walk(getattr(value, each.name), (*path, each.name))
    elif _is_named(value):
        for key, part in zip(value._fields, value, strict=True):
            yield from _walk(part, (*path, key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _walk(part, (*path, number))


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")
