"""MODEL (a known name, ``torchvision:NAME``, ``timm:NAME``, an import path or an .onnx file) → a recipe that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport.artifacts.run_files import SOURCE_ONNX
from lrexport.errors import InputError, UsageError, signal_of, with_hint
from lrexport.networks import cifar_resnet, onnx_source, timm_zoo, torchvision_zoo
from lrexport.networks.lazy import fill_lazy_layers
from lrexport.networks.names import CIFAR_NAMES as CIFAR_NAMES
from lrexport.networks.names import (
    GIVE_WEIGHTS,
    TIMM,
    TORCHVISION,
    check_import_path,
    check_name,
    is_import_path,
    no_module,
    no_torchvision,
    parse_model,
)
from lrexport.runs.record import Record, load_record
from lrexport.runs.sources import ModelSource
from lrexport.signature import Signature
from lrexport.text import is_onnx_name, nearest
from lrexport.torch_tools.batch import signature_of
from lrexport.torch_tools.import_torchvision import torchvision, with_operators
from lrexport.torch_tools.plain_form import make_plain, unwrapped
from lrexport.trust import consent
from lrexport.trust.current_folder import import_here


@dataclass(frozen=True)
class ModelRecipe:
    """Builds the network as often as needed. ``source`` is MODEL without its options.

    ``signature`` says what the network takes. ``is_named``: lrexport, torchvision or timm
    knows the network by name; otherwise it comes from the user's callable. ``preprocessing`` has those fields of
    :class:`lrexport.preprocessing.Preprocessing` that the network's source states,
    ``published`` what its weights are known to reach. ``file`` is the .onnx file that the network comes from, if any, and
    ``file_shapes`` the sizes of its inputs by their names in it.
    """

    source: str
    build_with: Callable[..., nn.Module]
    signature: Signature
    kwargs: dict[str, Any] = field(default_factory=dict)
    takes_num_classes: bool = False
    is_named: bool = False
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    published: torchvision_zoo.Published | None = None
    file: Path | None = None
    file_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A new network of plain layers with fresh weights, by :meth:`as_made` and :func:`make_plain`."""
        network = self.as_made([])
        make_plain(network, self.signature)
        return network

    def as_made(self, notes: list[str]) -> nn.Module:
        """A new network with fresh weights, in float32 and eval mode; its weights keep the names of the builder.

        All weights are trainable, also those that the builder froze, because the whole network has to recover from
        compression. torch.compile is removed, with a remark in ``notes``. Lazy layers are initialised with one input.

        Raises UsageError if the builder fails or does not return a network whose layers can be changed, and InputError if
        lazy layers reject the input.
        """
        try:
            network = with_operators(lambda: self.build_with(**self.kwargs))
        except (Exception, SystemExit) as error:
            if signal_of(error) is not None:
                raise
            if isinstance(error, InputError | UsageError):
                raise
            raise UsageError(f"MODEL {self.source!r} raised {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"MODEL {self.source!r} returned {type(network).__name__}; expected a torch.nn.Module",
                "The callable must return the network itself.",
            )
        network, remarks = unwrapped(network, f"MODEL {self.source!r} returned a network")
        notes += remarks
        if self.file is not None:
            return network  # read in float32 and eval mode, with plain layers
        network = network.float().eval()
        fill_lazy_layers(network, self.signature)
        for parameter in network.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
        return network

    def sharing_weights(self) -> ModelRecipe:
        """The recipe for networks that are not trained: those of a file all use its weights as they are in memory."""
        if self.file is None:
            return self
        return replace(self, build_with=partial(onnx_source.untrained_of, self.file, self.signature))

    def bytes_of_weights(self) -> int | None:
        """Bytes of the weights in float32, without allocating them; None for a user's callable or file."""
        if not self.is_named:
            return None
        try:
            with torch.device("meta"):
                network = with_operators(lambda: self.build_with(**self.kwargs))
        except Exception:  # the real build reports the error
            return None
        return sum(4 * tensor.numel() for tensor in (*network.parameters(), *network.buffers()))

    def with_classes(self, classes: int) -> ModelRecipe:
        """The same network with ``classes`` classes, unless the user chose a number or the builder has no such option."""
        if not self.takes_num_classes or "num_classes" in self.kwargs:
            return self
        return replace(self, kwargs={**self.kwargs, "num_classes": classes})

    def is_random(self, weights: Path | None) -> bool:
        """Whether the network has random weights: it has a known name, and neither ``weights`` nor its options give any.

        A user's callable may load weights itself, so it does not count as random.
        """
        return self.is_named and weights is None and not any(map(self.kwargs.get, GIVE_WEIGHTS))

    def to_record(self) -> ModelSource:
        made = ModelSource.of(self.source, self.kwargs, self.signature)
        return made.model_copy(update={"file_shapes": dict(self.file_shapes)})


def resolve(model: str, inputs: Signature | Sequence[int] | None = None) -> ModelRecipe:
    """The recipe of MODEL, such as ``resnet20``, ``torchvision:resnet18?num_classes=10`` or ``my.module:make``.

    Raises UsageError if the name is unknown, or if an import path cannot be imported or is not callable.
    """
    name, kwargs = parse_model(model)
    return _resolve(name, kwargs, None if inputs is None else Signature.of(inputs))


def from_record(source: ModelSource, named_in: Path, record: Record | None = None) -> ModelRecipe:
    """The recipe of a run's network, which the record ``named_in`` names; ``record`` is its content if that is known.

    Raises UsageError if its source no longer exists, InputError for code that the user did not agree to run, or if the
    run's copy of an .onnx file is missing or damaged.
    """
    kwargs = dict(source.kwargs)
    if source.is_file:  # the run's copy: its own name is only for people, and may be anything in a run of somebody else
        run = named_in.parent
        return _from_onnx(source.source, (record or load_record(run)).check(run, SOURCE_ONNX), source.signature)
    if source.source.startswith(TORCHVISION):
        check_name(source.source)
        name = source.source.removeprefix(TORCHVISION)
        like_weights = _without_downloads(name, kwargs, named_in)
        if kwargs.get("weights") is not None and torchvision_zoo.is_detector(name):
            kwargs.pop("weights_backbone", None)
            recipe = _resolve(source.source, kwargs, source.signature, named_in)
            return replace(recipe, build_with=partial(torchvision_zoo.build_without_fetching, name))
        kwargs = like_weights
    elif source.source.startswith(TIMM):
        check_name(source.source)
        kwargs.pop("pretrained", None)  # timm builds the same network without
    try:
        return _resolve(source.source, kwargs, source.signature, named_in)
    except UsageError as error:
        if not is_import_path(source.source):
            raise
        hint = f"The run was made from {source.source}: start in the folder where that can be imported."
        raise with_hint(error, hint) from error


def _without_downloads(name: str, kwargs: dict[str, Any], named_in: Path) -> dict[str, Any]:
    """A record's options without weights to download, because the run has its own.

    Options that torchvision derives from those weights, such as the number of classes, are kept.
    """
    own = {key: value for key, value in kwargs.items() if key not in ("weights", "weights_backbone")}
    if kwargs.get("weights") is None:
        return own
    try:
        return {**torchvision_zoo.options_of_weights(name, kwargs["weights"]), **own}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{named_in}: torchvision has no weights {kwargs['weights']!r} of {name!r}") from error


def _resolve(name: str, kwargs: dict[str, Any], signature: Signature | None, named_in: Path | None = None) -> ModelRecipe:
    if name.startswith(TORCHVISION):
        return _from_torchvision(name, kwargs, signature)
    if name.startswith(TIMM):
        return _from_timm(name, kwargs, signature)
    if is_import_path(name):
        return _from_import_path(name, kwargs, signature, named_in)
    if is_onnx_name(name):
        check_name(name)
        return _from_onnx(name, Path(name), signature)
    check_name(name)
    depth = int(name.removeprefix("resnet"))

    def build(**options: Any) -> nn.Module:
        return cifar_resnet.CifarResNet(depth, **options)

    taken = signature or Signature.of(cifar_resnet.INPUT_SHAPE)
    return ModelRecipe(name, build, taken, kwargs, takes_num_classes=True, is_named=True)


def _from_onnx(source: str, path: Path, signature: Signature | None) -> ModelRecipe:
    network = onnx_source.network_of(path, signature)
    return ModelRecipe(
        source,
        partial(onnx_source.copy_of, path, signature),
        network.signature,
        preprocessing=onnx_source.stated_preprocessing(network),
        file=path,
        file_shapes=onnx_source.file_shapes(network),
    )


def _from_torchvision(source: str, kwargs: dict[str, Any], signature: Signature | None) -> ModelRecipe:
    name = source.removeprefix(TORCHVISION)
    known = torchvision("models").list_models()
    if name not in known:
        raise no_torchvision(name, known)
    build = partial(torchvision_zoo.build, name)
    taken = signature or torchvision_zoo.signature_of(name, kwargs)
    preprocessing = torchvision_zoo.preprocessing_of(name, kwargs, taken)
    published = torchvision_zoo.published_of(name, kwargs)
    return ModelRecipe(source, build, taken, kwargs, True, True, preprocessing, published)


def _from_timm(source: str, kwargs: dict[str, Any], signature: Signature | None) -> ModelRecipe:
    name = source.removeprefix(TIMM)
    network = timm_zoo.look_up(name, kwargs, signature)
    build = partial(timm_zoo.build, name)
    options, taken = network.options, network.signature
    return ModelRecipe(
        source, build, taken, options, takes_num_classes=True, is_named=True, preprocessing=network.preprocessing
    )


def _from_import_path(
    source: str, kwargs: dict[str, Any], signature: Signature | None, named_in: Path | None
) -> ModelRecipe:
    build = import_callable(source, "MODEL", kwargs, named_in)
    if isinstance(build, nn.Module):
        raise UsageError(
            f"MODEL {source!r} is a network; expected a callable that returns one",
            "The network is built several times: write a function or a class that makes it.",
        )
    taken = signature or _own_signature(build, source)
    try:
        takes_num_classes = "num_classes" in inspect.signature(build).parameters
    except (TypeError, ValueError):
        takes_num_classes = False
    return ModelRecipe(source, build, taken, kwargs, takes_num_classes)


def _own_signature(build: Any, source: str) -> Signature:
    """What a callable says of the inputs of its network. Raises UsageError where it says nothing, or nothing sound."""
    shape, inputs = getattr(build, "input_shape", None), getattr(build, "inputs", None)
    examples = getattr(build, "example_inputs", None)
    if inputs is not None:
        if isinstance(inputs, Mapping | Signature):
            return Signature.of(inputs)
        if isinstance(inputs, list | tuple) and inputs and all(isinstance(each, str) for each in inputs):
            return Signature.parse(inputs)
        raise UsageError(
            f"invalid inputs {inputs!r} of MODEL {source!r}: expected shapes by name",
            'As in make.inputs = {"image": (3, 224, 224), "tokens": "16:int64:0..100"}.',
        )
    if examples is not None:
        return signature_of(examples)
    if shape is None:
        raise UsageError(
            f"unknown input shape of MODEL {source!r}",
            "Give --input-shape, for example 3,224,224, or set the attribute input_shape = (3, 224, 224) on the callable. "
            "For several inputs, or other types than floats, give --input or set inputs.",
        )
    if not (isinstance(shape, tuple | list) and shape and all(isinstance(n, int) and n > 0 for n in shape)):
        raise UsageError(f"invalid input_shape {shape!r} of MODEL {source!r}: expected numbers, for example (3, 224, 224)")
    return Signature.of(shape)


def import_callable(
    path: str, what: str, kwargs: Mapping[str, Any] | None = None, named_in: Path | None = None
) -> Callable[..., Any]:
    """The callable at ``package.module:attribute``. Raises as :func:`import_object`, UsageError if it is not callable."""
    target: Callable[..., Any] = import_object(path, what, kwargs, named_in)
    if not callable(target):
        raise UsageError(f"{what} {path!r} is of type {type(target).__name__}; expected a callable")
    return target


def import_object(path: str, what: str, kwargs: Mapping[str, Any] | None = None, named_in: Path | None = None) -> Any:
    """What is at ``package.module:attribute``, which may be in the current folder, to be called with ``kwargs``.

    ``named_in`` is the file that names it, None if the user does. Raises InputError, before any import, if a file names it
    and the user did not agree to run it. Raises UsageError if the module is not found or raises an error, or if the
    attribute is missing.
    """
    check_import_path(path, what)
    module_name, _, attribute = path.partition(":")
    code = consent.code_at(path, what, kwargs)
    if code is None:
        raise no_module(what, path, module_name)
    if named_in is None:
        consent.agree(code)
    else:
        consent.require(code, named_in)
    try:
        module = with_operators(lambda: import_here(module_name))
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise no_module(what, path, error.name) from error
        raise UsageError(f"{what} {path!r}: importing it raised ModuleNotFoundError: {error}") from error
    except (Exception, SystemExit) as error:  # a script without a main guard may exit, even with code 0
        if signal_of(error) is not None:
            raise
        raise UsageError(f"{what} {path!r}: importing it raised {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        close = nearest(attribute, dir(module), 3)
        raise UsageError(
            f"{what} {path!r}: {module_name} has no {attribute!r}", f"Close: {', '.join(close)}." if close else None
        ) from None
