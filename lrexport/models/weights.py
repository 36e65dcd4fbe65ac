"""Put a foreign state dict into a network, or say exactly why it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lrexport.artifacts import tensors
from lrexport.errors import InputError
from lrexport.models import cifar_resnet, zoo
from lrexport.models.vision import torchvision

_SHOWN = 10


def load_weights(network: nn.Module, path: Path) -> None:
    """Load safetensors or a plain state dict into ``network``, in place.

    Raises InputError naming missing and unexpected tensors, shapes that differ and the closest known network, or the
    layer that holds NaN or infinity.
    """
    given = zoo.without_auxiliary(_with_our_names(tensors.load(path), network), network)
    wanted = network.state_dict()
    # BatchNorm's counter is absent from old checkpoints, and nothing depends on it.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    differ = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if missing or unexpected or differ:
        raise InputError(_mismatch(path, wanted, given, missing, unexpected, differ), _closest(given))
    check_finite(given, str(path))
    network.load_state_dict(given, strict=False)


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError naming the first tensors that hold NaN or infinity."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"NaN or infinity in the weights of {where}: {', '.join(bad[:_SHOWN])}{more}",
            "Training diverged before these were saved; use an earlier checkpoint.",
        )


def _with_our_names(given: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """CIFAR ResNets in the wild call the classifier ``linear`` or ``fc``; both are accepted."""
    if not isinstance(network, cifar_resnet.CifarResNet):
        return given
    return {f"linear.{name[3:]}" if name.startswith("fc.") else name: value for name, value in given.items()}


def _mismatch(
    path: Path,
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    differ: list[str],
) -> str:
    lines = [f"{path} does not fit the network"]
    for label, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            lines.append(f"  {label} ({len(names)}): {_first(names)}")
    if differ:
        shapes = [f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}" for name in differ]
        lines.append(f"  other shapes ({len(differ)}): {_first(shapes)}")
    return "\n".join(lines)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _closest(given: Mapping[str, Tensor]) -> str | None:
    """The known network whose tensor names and shapes overlap most with ``given`` (Jaccard index), if more than half."""
    mine = {(name, tuple(value.shape)) for name, value in given.items() if not name.endswith("num_batches_tracked")}
    mine |= {(f"linear.{name[3:]}", shape) for name, shape in mine if name.startswith("fc.")}
    best, score = "", 0.5
    for source, network in _known_networks():
        theirs = {(name, tuple(p.shape)) for name, p in network.state_dict().items() if "num_batches" not in name}
        overlap = len(mine & theirs) / len(mine | theirs)
        if overlap > score:
            best, score = source, overlap
    return f"These look like weights of {best}." if best else None


def _known_networks() -> list[tuple[str, nn.Module]]:
    families = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "vgg16", "vgg16_bn", "densenet121")
    known: list[tuple[str, nn.Module]] = []
    with torch.device("meta"):  # shapes without memory
        known += [(f"resnet{depth}", cifar_resnet.CifarResNet(depth)) for depth in cifar_resnet.DEPTHS]
        models = torchvision("models")
        known += [(f"torchvision:{name}", models.get_model(name, weights=None)) for name in families]
    return known
