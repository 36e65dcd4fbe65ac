"""timm's networks by name, and what timm's configuration says of their images."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from lrexport.errors import UsageError
from lrexport.networks.names import TIMM, missing_timm, no_timm
from lrexport.signature import Signature
from lrexport.torch_tools.import_torchvision import with_operators

# Arguments of timm.create_model that read a file or replace the configuration, and what does this here.
_ELSEWHERE = {
    "checkpoint_path": "Use --weights FILE, which never runs code.",
    "cache_dir": "Set HF_HUB_CACHE or TORCH_HOME instead.",
    "pretrained_cfg": "Write the tag behind the name, as in timm:resnet18.a1_in1k.",
    "pretrained_cfg_overlay": "Write the tag behind the name, as in timm:resnet18.a1_in1k.",
}
_CROPS = {"center": "center", "squash": "none"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm: what it takes, the options to build it with, and its preprocessing as plain values."""

    signature: Signature
    options: dict[str, Any]
    preprocessing: dict[str, Any]


def timm() -> ModuleType:
    """The package. Raises DeviceError if it, or one that it needs, is not installed."""
    try:
        return with_operators(lambda: importlib.import_module("timm"))
    except ModuleNotFoundError as error:
        raise missing_timm(error.name or "timm") from error


def build(name: str, **options: Any) -> nn.Module:
    """timm's network ``name``; its weights are random unless the options have ``pretrained``."""
    network: nn.Module = timm().create_model(name, **options)
    return network


def look_up(name: str, options: Mapping[str, Any], signature: Signature | None) -> TimmNetwork:
    """What timm's configuration says of ``name`` built with ``options``, for inputs of ``signature`` if given.

    Networks that only take images of one size are built for that of ``signature``. Raises UsageError for a name or a tag
    that timm does not have, and for options that load weights in another way than ``pretrained``.
    """
    for option, hint in _ELSEWHERE.items():
        if option in options:
            raise UsageError(f"invalid option {option!r} of MODEL {TIMM + name!r}", hint)
    configuration = _configuration(name)
    built_with = dict(options)
    if signature is None:
        channels, *sides = configuration.get("input_size", (3, 224, 224))
        size = options.get("img_size")
        sides = sides if size is None else [int(size)] * 2
        signature = Signature.of((int(options.get("in_chans") or channels), *sides))
    elif configuration.get("fixed_input_size") and "img_size" not in options and signature.takes_images:
        height, width = signature.shape[1:]
        if (height, width) != tuple(configuration["input_size"][1:]):
            built_with["img_size"] = height if height == width else [height, width]
    return TimmNetwork(signature, built_with, _preprocessing(configuration, signature))


def _configuration(name: str) -> dict[str, Any]:
    """timm's values for the weights of a name and tag, or for the name's default ones; empty if it has none."""
    package = timm()
    models = importlib.import_module("timm.models")
    architecture = name.partition(".")[0]
    if not models.is_model(architecture):
        raise no_timm(name, package.list_models())
    try:
        configuration = models.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        raise no_timm(name, package.list_models(f"{architecture}.*", include_tags=True)) from None
    return {} if configuration is None else dict(configuration.to_dict())


def _preprocessing(configuration: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """How timm makes images of ``signature`` from pictures, by the names of lrexport's Preprocessing."""
    if not signature.takes_images:
        return {}
    values: dict[str, Any] = {"value_range": (0.0, 1.0)}
    for name in ("mean", "std"):
        if configured := configuration.get(name):
            channels = signature.shape[0]
            one = sum(configured) / len(configured)  # as timm adds up the weights of the first layer for grey images
            values[name] = tuple(configured) if len(configured) == channels else (one,) * channels
    if configuration.get("interpolation") in _INTERPOLATIONS:
        values["interpolation"] = configuration["interpolation"]
    crop, share = _CROPS.get(configuration.get("crop_mode", "center")), configuration.get("crop_pct")
    if crop is not None:
        values["crop"] = crop
    if crop == "center" and share:
        values["resize"] = int(min(signature.shape[1:]) / share)
    return values
