"""Find the state dicts in a checkpoint: all mappings of tensors, by their place in what a training script saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.errors import InputError

if TYPE_CHECKING:
    import torch

StateDicts = dict[str, dict[str, "torch.Tensor"]]

# Scripts nest a state dict at most three levels deep ("checkpoint", "model", "ema"), optimisers their state as well.
_DEEPEST = 4
_MOST_CONTAINERS = 20_000
_SHOWN = 10
# Names in the pickle of other values that training scripts save with the weights; inert classes replace them.
_NUMPY_NUMBERS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
HARMLESS = ("argparse.Namespace", "numpy.dtype", *_NUMPY_NUMBERS)


def state_dicts_in(path: Path, content: object) -> StateDicts:
    """The mappings of tensors in a checkpoint's ``content``, outermost first, by the keys that lead to them.

    Keys are joined by dots; "" is the content itself. Entries that are not tensors (an epoch, options) are left out.
    Raises InputError naming ``path`` if there is no tensor at all.
    """
    by_place: StateDicts = {}
    for place, values in _mappings(content):
        tensors = _tensors_in(values)
        if tensors:
            by_place.setdefault(place, tensors)
    if by_place:
        return by_place
    if isinstance(content, Mapping) and content:
        listed = ", ".join(map(str, list(content)[:_SHOWN]))
        raise InputError(f"no tensors in {path}; its entries are {listed}", "Save the state dict of the network.")
    if isinstance(content, Mapping):
        raise InputError(f"no tensors in {path}", "Save the state dict of the network.")
    message = f"{path} contains a {type(content).__name__}; expected a state dict of tensors"
    raise InputError(message, "Save the state dict of the network.")


def _mappings(content: object) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Mappings within ``content``, level by level; each once, even if a pickle repeats or contains itself."""
    level: list[tuple[str, object]] = [("", content)]
    seen = {id(content)}
    for _ in range(_DEEPEST):
        below: list[tuple[str, object]] = []
        for place, container in level:
            if isinstance(container, Mapping):
                yield place, container
            for key, value in _items(container):
                if isinstance(value, Mapping | list | tuple) and id(value) not in seen and len(seen) < _MOST_CONTAINERS:
                    seen.add(id(value))
                    below.append((f"{place}.{key}" if place else str(key), value))
        level = below


def _items(container: object) -> Iterator[tuple[object, object]]:
    if isinstance(container, Mapping):
        yield from container.items()
    elif isinstance(container, list | tuple):
        yield from enumerate(container)


def _tensors_in(values: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {str(key): value for key, value in values.items() if isinstance(value, torch.Tensor)}


def has_plain_values(tensor: torch.Tensor) -> bool:
    """Whether it is an ordinary tensor: not sparse, quantised, distributed or without values (meta)."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


class _Inert:
    """Replaces a class whose values are not needed, such as argparse.Namespace; accepts whatever a pickle passes."""

    def __init__(self, *_args: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


class _Namespace(_Inert):
    """Options of a training script."""


class _NumpyType(_Inert):
    """The type of a NumPy number."""


def _numpy_number(_kind: object, _raw: object = b"") -> None:
    """A NumPy number, such as a best accuracy; its value is not needed."""


def reading_numbers_and_options() -> AbstractContextManager[None]:
    """Inside the block, ``torch.load(weights_only=True)`` accepts NumPy numbers and argparse.Namespace in a checkpoint.

    Inert classes of this module replace them, so no code of NumPy or argparse is called.
    """
    import torch

    numbers = [(_numpy_number, name) for name in _NUMPY_NUMBERS]
    allowed: list[Any] = [(_Namespace, HARMLESS[0]), (_NumpyType, HARMLESS[1]), *numbers]
    return torch.serialization.safe_globals(allowed)
