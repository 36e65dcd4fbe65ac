"""torchvision's networks as lrexport needs them: one tensor in, one tensor out, without parts that are only for training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.torch_tools.import_torchvision import torchvision

# Auxiliary classifiers on inner layers, whose outputs only torchvision's training scripts use.
_AUXILIARY = ("aux_classifier", "AuxLogits", "aux1", "aux2")
_ASKS_FOR_THEM = ("aux_loss", "aux_logits")


def build(name: str, **options: Any) -> nn.Module:
    """torchvision's network ``name``, built with ``options``; its weights are random unless the options name some.

    Segmentation networks return their class scores, (batch, classes, H, W), instead of a dict. Auxiliary classifiers are
    left out; layer names stay. Raises UsageError if ``options`` ask for auxiliary classifiers.
    """
    if asked := [option for option in _ASKS_FOR_THEM if options.get(option)]:
        hint = "It is only for training; lrexport trains and exports a single output."
        raise UsageError(f"{name} with an auxiliary classifier ({asked[0]}) is not supported", hint)
    models = torchvision("models")
    # By default torchvision downloads weights for some backbones, and warns about the initialisation of others.
    defaults: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        defaults["weights_backbone"] = None
    if name in ("googlenet", "inception_v3") and options.get("weights") is None:
        defaults["init_weights"] = True
    network: Any = models.get_model(name, **{**defaults, **options})
    for part in _AUXILIARY:
        if isinstance(getattr(network, part, None), nn.Module):
            setattr(network, part, None)
    if hasattr(network, "aux_logits"):
        network.aux_logits = False  # otherwise forward calls them in training mode
    if name in models.list_models(module=models.segmentation):
        # A subclass instead of a wrapper, so that published weights still fit.
        network.__class__ = type(type(network).__name__, (_ScoresOnly, type(network)), {})
    return network


class _ScoresOnly(nn.Module):
    """Mixin for torchvision's segmentation networks: returns the scores instead of the dict."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = super().forward(x)["out"]
        return scores


def options_of_weights(name: str, weights: Any) -> dict[str, Any]:
    """The builder options that torchvision's ``weights`` imply, to build the same network without them."""
    models = torchvision("models")
    meta = models.get_model_weights(name).verify(weights).meta
    options: dict[str, Any] = {"num_classes": len(meta["categories"])}
    if name in ("googlenet", "inception_v3"):
        options["transform_input"] = True
    if name.startswith("vit_"):
        options["image_size"] = meta["min_size"][0]
    if name.startswith("maxvit_"):
        options["input_size"] = meta["min_size"]
    return options


def without_auxiliary(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Published weights without those of the auxiliary classifiers that :func:`build` left out of ``network``."""
    absent = tuple(f"{part}." for part in _AUXILIARY if getattr(network, part, network) is None)
    return {name: value for name, value in weights.items() if not name.startswith(absent)}
