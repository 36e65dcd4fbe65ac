"""How pictures become the values that a network takes. No torch, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lrexport.errors import UsageError

# ImageNet's statistics, which torchvision's networks and the common CIFAR checkpoints were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Channels = Literal["rgb", "bgr", "grey"]
Crop = Literal["center", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Origin = Literal["default", "data", "network", "options"]
CHANNELS, CROPS = ("rgb", "bgr", "grey"), ("center", "none")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_OF_PIXELS = 255
METADATA_KEY = "lrexport.preprocessing"  # of an .onnx file: the fields as JSON
_ORIGINS = {
    "default": "lrexport's default",
    "data": "those of the data",
    "network": "those of the network",
    "options": "as given",
}


@dataclass(frozen=True)
class Preprocessing:
    """From a picture with 8 bits a channel to an input (C, H, W), which is (pixel · (high − low) / 255 + low − mean) / std.

    ``size`` is (height, width) of the input; None if pictures already have it. With ``crop`` "center" the shorter side is
    first resized to ``resize`` pixels (None: what the data's loader does), and the middle is cut out; with "none" the whole
    picture is resized to ``size``. ``value_range`` is (low, high) of pixels before ``mean`` and ``std``, which have a number
    for each channel. ``origin`` says where mean, std and range come from. Raises UsageError for values that make no sense.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: Crop = "center"
    channels: Channels = "rgb"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: Interpolation = "bilinear"
    origin: Origin = "default"

    def __post_init__(self) -> None:
        check_numbers("mean", self.mean)
        check_numbers("std", self.std)
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(f"invalid value range {low:g}..{high:g}: expected LOW..HIGH, LOW below HIGH", _RANGE_HINT)
        if len(self.mean) != len(self.std):
            raise UsageError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected one of each for every channel",
                "As in --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5.",
            )
        for name, value, known in (
            ("crop", self.crop, CROPS),
            ("channel order", self.channels, CHANNELS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise UsageError(f"invalid {name} {value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
        if self.resize is not None and self.size is not None and self.crop == "center" and self.resize < min(self.size):
            raise UsageError(
                f"pictures resized to {self.resize} pixels are smaller than the crop of {_sides(self.size)}",
                f"Give --resize {max(self.size)} or more, or --crop none.",
            )

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        asked: Mapping[str, Any],
        given: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Preprocessing:
        """For inputs of ``shape`` (C, H, W): what the user ``asked`` for, else what the network is ``given``, else ``data``

        Each mapping has some of the fields. What none of them has is ImageNet's for three channels, and mean and standard
        deviation 0.5 for others. Raises UsageError where mean and std do not have a number for each channel.
        """
        channels = shape[0]
        plain: dict[str, Any] = {"channels": "rgb" if channels != 1 else "grey"}
        if channels != 3:
            plain |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
        origin: Origin = "default"
        sources: tuple[tuple[Origin, Mapping[str, Any]], ...] = (
            ("data", data or {}),
            ("network", given or {}),
            ("options", asked),
        )
        for place, values in sources:
            said = {key: value for key, value in values.items() if value is not None}
            if place != "options" and not _fits(said, channels):  # a network for another number of channels
                said = {key: value for key, value in said.items() if key not in ("mean", "std")}
            plain |= {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
            if {"mean", "std", "value_range"} & said.keys():
                origin = place
        for name in ("mean", "std"):
            if len(plain.get(name, ())) == 1:  # one number serves all channels
                plain[name] = tuple(plain[name]) * channels
        made = cls(**{**plain, "size": (int(shape[1]), int(shape[2])), "origin": origin})
        if len(made.mean) != channels:
            raise UsageError(
                f"mean and std have {len(made.mean)} numbers; the network takes {channels} channels",
                "Give one number for each channel, or one for all.",
            )
        return made

    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(scale, shift) by channel: a pixel p of 0…255 becomes p · scale + shift."""
        low, high = self.value_range
        scale = tuple((high - low) / (_OF_PIXELS * std) for std in self.std)
        return scale, tuple((low - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def to_plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    def __str__(self) -> str:
        """For people, in one line."""
        order = {"rgb": "RGB", "bgr": "BGR", "grey": "grey"}[self.channels]
        places = [] if self.size is None else [_sides(self.size)]
        if self.resize is not None and self.crop == "center":
            places.append(f"cut from a shorter side of {self.resize}")
        elif self.crop == "none":
            places.append("not cropped")
        low, high = self.value_range
        values = f"values {low:g}..{high:g}, mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        return f"{', '.join([*places, order, values])} ({_ORIGINS[self.origin]})"


_OPTIONS = {
    "mean": "mean",
    "std": "std",
    "value_range": "value_range",
    "resize": "resize",
    "crop": "crop",
    "channel_order": "channels",
}
_RANGE_HINT = "As in --value-range 0..255 or --value-range=-1..1."


def asked_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that options of a configuration say, None for the others. Raises UsageError for invalid ones."""
    asked: dict[str, Any] = {field: config.get(option) for option, field in _OPTIONS.items()}
    for name in ("mean", "std"):
        if asked[name] is not None:
            asked[name] = tuple(map(float, asked[name]))
            check_numbers(name, asked[name])
    if asked["value_range"] is not None:
        asked["value_range"] = parse_range(asked["value_range"])
    return asked


def parse_range(text: str) -> tuple[float, float]:
    """(low, high) of ``LOW..HIGH``. Raises UsageError."""
    low, _, high = text.partition("..")
    try:
        numbers = float(low), float(high)
    except ValueError:
        numbers = math.nan, math.nan
    if not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
        raise UsageError(f"invalid value range {text!r}: expected LOW..HIGH, LOW below HIGH", _RANGE_HINT)
    return numbers


def check_numbers(name: str, values: Sequence[float]) -> None:
    """Raise UsageError unless there are finite numbers, above 0 for a standard deviation."""
    sound = all(math.isfinite(value) and (name == "mean" or value > 0) for value in values)
    if not values or not sound:
        expected = "numbers above 0" if name == "std" else "numbers"
        raise UsageError(
            f"invalid {name} {_numbers(values)!r}: expected {expected}, one for each channel", f"As in --{name} 0.5,0.5,0.5."
        )


def _fits(values: Mapping[str, Any], channels: int) -> bool:
    """Whether mean and std have a number for each channel, or are not among the values."""
    return all(len(values[name]) in (1, channels) for name in ("mean", "std") if name in values)


def _numbers(values: Sequence[float]) -> str:
    shown = list(dict.fromkeys(values))
    return f"{shown[0]:.4g}" if len(shown) == 1 else ", ".join(f"{value:.4g}" for value in values)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
