"""torchvision's networks as lrexport needs them: what they take, and their outputs without parts only for training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.signature import Signature
from lrexport.torch_tools.import_torchvision import torchvision

# Auxiliary classifiers on inner layers, whose outputs only torchvision's training scripts use.
_AUXILIARY = ("aux_classifier", "AuxLogits", "aux1", "aux2")
_ASKS_FOR_THEM = ("aux_loss", "aux_logits")
# An option of lrexport's: a detector returns what its heads predict for every anchor instead of detections.
_HEADS = "heads"
# Sizes of inputs by the beginning of a name; the published weights were trained with these.
_SIZES = {"inception_v3": 299, "ssd300": 300, "ssdlite320": 320}
_SEGMENTATION, _DETECTION, _FLOW = 520, 800, (3, 520, 960)
# Scores that torchvision states, and lrexport's names of these metrics.
_METRICS = {"acc@1": "top-1", "miou": "mIoU", "box_map": "mAP"}
_NOTHING: dict[str, Tensor] = {}
_SMALL_VIDEOS = ("r3d", "mc3", "r2plus1d")


def build(name: str, **options: Any) -> nn.Module:
    """torchvision's network ``name``, built with ``options``; its weights are random unless the options name some.

    Segmentation networks return their class scores, (batch, classes, H, W), instead of a dict. Detectors return a dict of
    boxes, labels and scores for each image; with ``heads`` in ``options`` a dict of the predictions for all anchors, whose
    sizes do not depend on the image. Auxiliary classifiers are left out; layer names stay. Raises UsageError if ``options``
    ask for auxiliary classifiers, or for the heads of a network that has none.
    """
    heads = options.pop(_HEADS, False)
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
        _derive(network, _ScoresOnly)
    if is_detector(name):
        _derive(network, _Detector)
    if heads:
        if not (isinstance(network, _Detector) and hasattr(network, "head")):
            raise UsageError(
                f"{name} has no {_HEADS} to return without post-processing", "ssd, ssdlite, retinanet and fcos have."
            )
        _derive(network, _Heads)
    return network


def build_without_fetching(name: str, **options: Any) -> nn.Module:
    """As :func:`build` with the same options, but weights that these name keep random values.

    Detectors are built in another way with weights than without: with frozen BatchNorms, some with another epsilon.
    """
    enumeration: Any = torchvision("models._api").WeightsEnum
    every_module: Any = nn.Module
    fetch, load = enumeration.get_state_dict, every_module.load_state_dict

    def load_unless_nothing(network: nn.Module, values: Any, *given: Any, **named: Any) -> Any:
        return None if values is _NOTHING else load(network, values, *given, **named)

    enumeration.get_state_dict = lambda *_given, **_named: _NOTHING
    every_module.load_state_dict = load_unless_nothing
    try:
        return build(name, **options)
    finally:
        enumeration.get_state_dict, every_module.load_state_dict = fetch, load


def _derive(network: Any, mixin: type) -> None:
    network.__class__ = type(type(network).__name__, (mixin, type(network)), {})


def is_detector(name: str) -> bool:
    """Whether torchvision's network ``name`` finds objects."""
    models = torchvision("models")
    return name in models.list_models(module=models.detection)


class _ScoresOnly(nn.Module):
    """Mixin for torchvision's segmentation networks: returns the scores instead of the dict."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = super().forward(x)["out"]
        return scores


class _Detector(nn.Module):
    """Mixin for torchvision's detectors: their post-processing can be exported."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        if not (torch.compiler.is_exporting() or torchvision()._is_tracing()):
            return super().forward(images, targets)
        transform: Any = self.transform
        with _suppressing_without_branches(max(transform.fixed_size or (transform.max_size,))):
            return super().forward(images, targets)


class _Heads(nn.Module):
    """Mixin for detectors with one head: in eval mode returns its predictions for all anchors."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        if self.training:
            return super().forward(images, targets)
        network: Any = self
        given, _ = network.transform(images)
        features = network.backbone(given.tensors)
        return network.head([features] if isinstance(features, Tensor) else list(features.values()))


@contextmanager
def _suppressing_without_branches(size: int) -> Iterator[None]:
    """Inside the block, boxes within ``size`` pixels are suppressed class by class without branches on their number.

    torchvision chooses between two implementations by the number of boxes, which a graph cannot. This is one of them.
    """
    boxes = torchvision("ops.boxes")

    def suppress(given: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
        apart = classes.to(given) * (size + 1)  # no box overlaps one of another class
        kept: Tensor = boxes.nms(given + apart.unsqueeze(1), scores, threshold)
        return kept

    usual = boxes.batched_nms
    boxes.batched_nms = suppress  # type: ignore[attr-defined]
    try:
        yield
    finally:
        boxes.batched_nms = usual  # type: ignore[attr-defined]


def signature_of(name: str, options: Mapping[str, Any]) -> Signature:
    """What torchvision's network ``name`` takes: images of the size that its published weights were trained with."""
    models = torchvision("models")
    if name in models.list_models(module=models.optical_flow):
        return Signature.of({"image1": _FLOW, "image2": _FLOW})
    if name in models.list_models(module=models.video):
        size = 112 if name.startswith(_SMALL_VIDEOS) else 224
        return Signature.of((3, 16, size, size))
    size = next((size for start, size in _SIZES.items() if name.startswith(start)), 224)
    if name in models.list_models(module=models.segmentation):
        size = _SEGMENTATION
    elif is_detector(name) and not name.startswith("ssd"):
        size = int(options.get("min_size", _DETECTION))
    elif crop := getattr(_transforms(name, options), "crop_size", None):
        size = int(crop[0])
    return Signature.of((3, size, size))


def preprocessing_of(name: str, options: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """How published weights in ``options`` get images of ``signature``, by the names of lrexport's Preprocessing.

    Detectors normalise images themselves. Empty where torchvision does not say it.
    """
    if not signature.takes_images:
        return {}
    if is_detector(name):
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3, "value_range": (0.0, 1.0)}
    transforms = _transforms(name, options)
    if not hasattr(transforms, "mean"):
        return {}
    values = {"mean": tuple(transforms.mean), "std": tuple(transforms.std), "value_range": (0.0, 1.0)}
    values["interpolation"] = transforms.interpolation.value
    crop, resize = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if crop and resize:
        values["resize"] = round(min(signature.shape[1:]) * resize[0] / crop[0])
    return values


@dataclass(frozen=True)
class Published:
    """What published weights reach: values by the names of lrexport's metrics, for so many classes."""

    metrics: Mapping[str, float]
    classes: int


def published_of(name: str, options: Mapping[str, Any]) -> Published | None:
    """The scores that torchvision states for the weights in ``options``; None without, or if it states none."""
    weights = _weights(name, options)
    if weights is None:
        return None
    stated = {key: value for values in weights.meta.get("_metrics", {}).values() for key, value in values.items()}
    metrics = {ours: stated[theirs] / 100 for theirs, ours in _METRICS.items() if theirs in stated}
    return Published(metrics, len(weights.meta.get("categories", ()))) if metrics else None


def _transforms(name: str, options: Mapping[str, Any]) -> Any:
    """torchvision's preset for the weights in ``options``; None without, or if there are no such weights."""
    weights = _weights(name, options)
    return None if weights is None else weights.transforms()


def _weights(name: str, options: Mapping[str, Any]) -> Any:
    try:
        return torchvision("models").get_model_weights(name).verify(options.get("weights"))
    except (KeyError, TypeError, ValueError):  # the builder reports it
        return None


def options_of_weights(name: str, weights: Any) -> dict[str, Any]:
    """The builder options that torchvision's ``weights`` imply, to build the same network without them."""
    models = torchvision("models")
    meta = models.get_model_weights(name).verify(weights).meta
    options: dict[str, Any] = {"num_classes": len(meta["categories"])} if "categories" in meta else {}
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
