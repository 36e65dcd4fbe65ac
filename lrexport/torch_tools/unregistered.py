"""Find weights that a network uses but has not registered: layers in plain lists, tuples, dictionaries, other objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrexport.errors import InputError
from lrexport.torch_tools.modules import WITHOUT_PARTS

_DEEPEST = 6
_SHOWN = 10


def check_registered(network: nn.Module, run: Callable[[], object]) -> None:
    """Raise InputError naming weights that the forward pass ``run`` uses but that are not in the network's state dict.

    They would be neither trained, saved nor factorised. Unused weights are ignored.
    """
    hidden = unregistered(network)
    if not hidden:
        return
    watch = _Uses({id(value) for value in hidden.values()})
    with watch:
        run()
    used = [name for name, value in hidden.items() if id(value) in watch.used]
    if used:
        more = f" and {len(used) - _SHOWN} more" if len(used) > _SHOWN else ""
        raise InputError(
            f"the network uses weights that are not in its state dict: {', '.join(used[:_SHOWN])}{more}",
            "They are in a plain list, tuple, dictionary or object, so they are neither trained nor saved. "
            "Use nn.ModuleList, nn.ModuleDict or nn.ParameterList, or register them.",
        )


def unregistered(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and other trainable tensors in plain attributes of modules, by their places."""
    known = {id(value) for value in (*network.parameters(), *network.buffers())}
    weights: dict[str, Tensor] = {}
    seen: set[int] = {id(module) for module in network.modules()}
    for name, module in network.named_modules():
        for place, value in _weights_in(module, name, seen, 0):
            if id(value) not in known:
                known.add(id(value))
                weights[place.lstrip(".")] = value
    return weights


def _weights_in(value: object, place: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    for key, part in _parts(value, place):
        if isinstance(part, Tensor):
            if isinstance(part, nn.Parameter) or (part.requires_grad and part.is_leaf):
                yield key, part
        elif not isinstance(part, WITHOUT_PARTS) and id(part) not in seen and depth < _DEEPEST:
            seen.add(id(part))
            yield from _weights_in(part, key, seen, depth + 1)


def _parts(value: object, place: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, nn.Module):
        for registered in (value._parameters, value._modules):
            yield from ((f"{place}.{name}", part) for name, part in registered.items())
    if isinstance(value, dict):
        yield from ((f"{place}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{place}[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"{place}{{…}}", part) for part in value)
    elif isinstance(value, partial):
        yield from ((f"{place}(…)", part) for part in (value.func, *value.args, *value.keywords.values()))
    own = getattr(value, "__dict__", {})
    internal = ("_parameters", "_modules", "_buffers") if isinstance(value, nn.Module) else ()
    yield from ((f"{place}.{name}", part) for name, part in own.items() if name not in internal and "_hooks" not in name)


class _Uses(TorchFunctionMode):
    """Records which of the watched tensors are passed to functions."""

    def __init__(self, watched: set[int]) -> None:
        super().__init__()
        self.watched = watched
        self.used: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            items = value if isinstance(value, list | tuple) else (value,)
            self.used |= {id(item) for item in items if id(item) in self.watched}
        return func(*args, **(kwargs or {}))
