"""MODEL → a recipe that builds the network: a known name, ``torchvision:NAME``, or ``package.module:callable``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from lrexport.errors import InputError, UsageError, with_hint
from lrexport.forward_errors import forward_error
from lrexport.models import cifar_resnet, zoo
from lrexport.models.here import import_here
from lrexport.models.vision import torchvision, with_operators
from lrexport.record import ModelSource

CIFAR_NAMES = tuple(f"resnet{depth}" for depth in cifar_resnet.DEPTHS)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModelRecipe:
    """Builds the network as often as needed. ``source`` is MODEL without its options.

    ``input_shape`` is that of one input, without the batch: (C, H, W) for images. ``is_named`` tells a
    network that lrexport or torchvision knows by name from a user's own callable.
    """

    source: str
    build_with: Callable[..., nn.Module]
    input_shape: Shape
    kwargs: dict[str, Any] = field(default_factory=dict)
    takes_num_classes: bool = False
    is_named: bool = False

    def build(self) -> nn.Module:
        """A new network with fresh weights, in eval mode, in float32, all of its weights trainable.

        Parameters that the builder froze train, too: what compression breaks has to heal everywhere. Lazy layers get their
        weights from one input. Raises UsageError where the builder fails or returns what is no network of plain layers,
        InputError where lazy layers do not take the input.
        """
        try:
            network = with_operators(lambda: self.build_with(**self.kwargs))
        except (Exception, SystemExit) as error:
            if isinstance(error, InputError | UsageError):
                raise
            raise UsageError(f"MODEL {self.source!r} raised {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"MODEL {self.source!r} returned {type(network).__name__}, a torch.nn.Module was wanted",
                "The callable must return the network itself.",
            )
        _check_plain(network, self.source)
        network = network.float().eval()
        _fill_lazy_layers(network, self.input_shape)
        for parameter in network.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
        return network

    def with_classes(self, classes: int) -> ModelRecipe:
        """The same network for another number of classes, unless the user chose it or the builder has no such option."""
        if not self.takes_num_classes or "num_classes" in self.kwargs:
            return self
        return replace(self, kwargs={**self.kwargs, "num_classes": classes})

    def is_random(self, weights: Path | None) -> bool:
        """Whether the network has random weights: it has a known name, and neither ``weights`` nor its options give any.

        A callable of the user's own may well come with weights.
        """
        return self.is_named and weights is None and not self.kwargs.get("weights")

    def to_record(self) -> ModelSource:
        return ModelSource(source=self.source, kwargs=self.kwargs, input_shape=self.input_shape)


def resolve(model: str, input_shape: Shape | None = None) -> ModelRecipe:
    """Recipe for MODEL, as ``resnet20``, ``torchvision:resnet18?num_classes=10`` or ``my.module:make``.

    Raises UsageError when the name is unknown, or an import path does not import or is no callable.
    """
    name, _, query = model.partition("?")
    return _resolve(name, {key: _literal(value) for key, value in parse_qsl(query)}, input_shape)


def from_record(source: ModelSource) -> ModelRecipe:
    """Recipe of a run's network. Raises UsageError where what it was made from is not there any more."""
    kwargs = dict(source.kwargs)
    if source.source.startswith("torchvision:") and (weights := kwargs.pop("weights", None)) is not None:
        # The run's own weights follow, but torchvision's may have set more than values.
        kwargs = {**zoo.options_of_weights(source.source.removeprefix("torchvision:"), weights), **kwargs}
    try:
        return _resolve(source.source, kwargs, source.input_shape)
    except UsageError as error:
        if ":" not in source.source or source.source.startswith("torchvision:"):
            raise
        hint = f"The run was made from {source.source}: start in the folder that it is importable from."
        raise with_hint(error, hint) from error


def _resolve(name: str, kwargs: dict[str, Any], input_shape: Shape | None) -> ModelRecipe:
    if name in CIFAR_NAMES:
        depth = int(name.removeprefix("resnet"))

        def build(**options: Any) -> nn.Module:
            return cifar_resnet.CifarResNet(depth, **options)

        return ModelRecipe(
            name, build, input_shape or cifar_resnet.INPUT_SHAPE, kwargs, takes_num_classes=True, is_named=True
        )
    if name.startswith("torchvision:"):
        return _from_torchvision(name, kwargs, input_shape)
    if ":" in name:
        return _from_import_path(name, kwargs, input_shape)
    if name.endswith(".py"):
        raise _a_file("MODEL", name)
    close = difflib.get_close_matches(name, CIFAR_NAMES, 3)
    if name in torchvision("models").list_models():
        close.insert(0, f"torchvision:{name}")
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    where = "It is a folder, but no run (it has no run.json). " if Path(name).is_dir() else ""
    raise UsageError(
        f"unknown MODEL {name!r}",
        f"{hint}{where}Known: {', '.join(CIFAR_NAMES)}, torchvision:NAME, package.module:callable, or a run's folder.",
    )


def _from_torchvision(source: str, kwargs: dict[str, Any], input_shape: Shape | None) -> ModelRecipe:
    name = source.removeprefix("torchvision:")
    models = torchvision("models")
    known = models.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3)
        raise UsageError(f"torchvision has no model {name!r}", f"Close: {', '.join(close)}." if close else None)
    size = 299 if name == "inception_v3" else 224
    build = partial(zoo.build, name)
    return ModelRecipe(source, build, input_shape or (3, size, size), kwargs, takes_num_classes=True, is_named=True)


def _from_import_path(source: str, kwargs: dict[str, Any], input_shape: Shape | None) -> ModelRecipe:
    build = import_callable(source, "MODEL")
    if isinstance(build, nn.Module):
        raise UsageError(
            f"MODEL {source!r} is a network itself; a callable that returns one was wanted",
            "It is built anew more than once: write a function or a class that makes it.",
        )
    shape = input_shape or getattr(build, "input_shape", None)
    if shape is None:
        raise UsageError(
            f"the input shape of MODEL {source!r} is not known",
            "Give --input-shape, as in 3,224,224, or set an attribute input_shape = (3, 224, 224) on the callable.",
        )
    if not (isinstance(shape, tuple | list) and shape and all(isinstance(n, int) and n > 0 for n in shape)):
        raise UsageError(f"the input_shape of MODEL {source!r} is {shape!r}, numbers as in (3, 224, 224) were wanted")
    try:
        takes_num_classes = "num_classes" in inspect.signature(build).parameters
    except (TypeError, ValueError):
        takes_num_classes = False
    return ModelRecipe(source, build, tuple(shape), kwargs, takes_num_classes)


def import_callable(path: str, what: str) -> Callable[..., Any]:
    """The object at ``package.module:attribute``, which may be in the current folder.

    Raises UsageError, each case apart: the module is not found, it raises while importing, the attribute is missing, or
    it is no callable.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{what} {path!r} is no import path", "Write package.module:callable.")
    if module_name.endswith(".py"):
        raise _a_file(what, path)
    try:
        module = with_operators(lambda: import_here(module_name))
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{what} {path!r}: there is no module {error.name!r}",
                "It must be importable from the current folder or installed.",
            ) from error
        raise UsageError(f"{what} {path!r}: importing it raised ModuleNotFoundError: {error}") from error
    except (Exception, SystemExit) as error:  # a script without a main guard may well exit, with 0 even
        raise UsageError(f"{what} {path!r}: importing it raised {type(error).__name__}: {error}") from error
    try:
        target = getattr(module, attribute)
    except AttributeError:
        close = difflib.get_close_matches(attribute, dir(module), 3)
        raise UsageError(
            f"{what} {path!r}: {module_name} has no {attribute!r}", f"Close: {', '.join(close)}." if close else None
        ) from None
    if not callable(target):
        raise UsageError(f"{what} {path!r} is a {type(target).__name__}, not a callable")
    return target


def _check_plain(network: nn.Module, source: str) -> None:
    """Raise UsageError for what has layers that nobody can look into or change, or no weights."""
    where = f"MODEL {source!r} returned a network"
    for name, module in network.named_modules():
        what = f"{where}: {name!r} is" if name else f"{where} that is"
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{what} TorchScript, whose layers cannot be changed", "Return the network it was made from.")
        # OptimizedModule, by what it wraps: importing its class would load the compiler.
        if "_orig_mod" in dict(module.named_children()) or getattr(module, "_compiled_call_impl", None) is not None:
            hint = "Return it without torch.compile; --compile trains through that."
            raise UsageError(f"{what} compiled, so that its layers cannot be changed", hint)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"{where} without values: {name!r} is on the meta device", "Build it on the CPU.")


def _fill_lazy_layers(network: nn.Module, input_shape: Shape) -> None:
    """Let torch.nn's lazy layers find their sizes by one input, and become the plain layers that they stand for."""
    if not _lazy_weights(network):
        return
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except Exception as error:
        raise forward_error(error, input_shape) from error
    if left := _lazy_weights(network):
        raise InputError(
            f"an input does not reach these lazy weights, whose sizes are not known: {', '.join(left[:10])}",
            "Build their layers with the sizes, or leave them out.",
        )


def _lazy_weights(network: nn.Module) -> list[str]:
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]


def _a_file(what: str, path: str) -> UsageError:
    """For a file where a module was wanted: a run's record has to find it again by its name."""
    file, _, attribute = path.partition(":")
    where = "" if Path(file).resolve().parent == Path.cwd() else f", started in {Path(file).parent}"
    return UsageError(
        f"{what} {path!r} names a file; an import path was wanted",
        f"Write {Path(file).stem}:{attribute or 'CALLABLE'}{where}.",
    )


def _literal(text: str) -> Any:
    """``10`` → int, ``0.5`` → float, ``true`` → bool; anything else stays text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
