"""What a record holds of where a run came from: how to build its network, its data, and their preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pydantic import Field, model_validator

from lrexport.errors import UsageError
from lrexport.preprocessing import Channels, Crop, Interpolation, Origin, Preprocessing
from lrexport.signature import Signature
from lrexport.stored import Stored
from lrexport.text import is_onnx_name


class ModelSource(Stored):
    """How to build the network again: ``source`` is MODEL without its options, which are in ``kwargs``.

    ``input_shape`` is that of its only input, without the batch; ``inputs`` has several, or one of which more is known, as
    ``NAME=SHAPE[:DTYPE[:LOW..HIGH]]``. ``source`` may be the name of an .onnx file, for people: the network
    comes from the run's copy of it, whose inputs have the sizes ``file_shapes`` by their names in the file.
    """

    source: str
    kwargs: dict[str, Any] = Field(default={})
    input_shape: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    file_shapes: dict[str, tuple[int, ...]] = Field(default={})

    @model_validator(mode="after")
    def _has_inputs(self) -> ModelSource:
        try:
            assert self.signature is not None
        except UsageError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def signature(self) -> Signature:
        """What the network takes."""
        return Signature.parse(self.inputs) if self.inputs else Signature.of(self.input_shape)

    @property
    def is_file(self) -> bool:
        """Whether the network came from an .onnx file."""
        return is_onnx_name(self.source)

    @property
    def text(self) -> str:
        """MODEL as on the command line, with its options: different networks have different texts."""
        query = urlencode(
            {name: value if isinstance(value, str) else str(value).lower() for name, value in self.kwargs.items()}
        )
        return f"{self.source}?{query}" if query else self.source

    @classmethod
    def of(cls, source: str, kwargs: dict[str, Any], signature: Signature) -> ModelSource:
        """The shape alone says all of a single plain input."""
        if signature.is_plain:
            return cls(source=source, kwargs=kwargs, input_shape=signature.shape)
        return cls(source=source, kwargs=kwargs, inputs=signature.texts())


class RecordedPreprocessing(Stored):
    """The fields of :class:`lrexport.preprocessing.Preprocessing`."""

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: Crop = "center"
    channels: Channels = "rgb"
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    origin: Origin = "default"

    @model_validator(mode="after")
    def _makes_sense(self) -> RecordedPreprocessing:
        try:
            assert self.value is not None
        except UsageError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def value(self) -> Preprocessing:
        """The preprocessing itself."""
        return Preprocessing(**self.model_dump())

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> RecordedPreprocessing:
        """What the record holds of it."""
        return cls(**preprocessing.to_plain())


class DataSource(Stored):
    """``source`` as given to --data, and the numbers of samples: choices are made on ``heldout``, never on ``test``.

    ``class_names`` are empty in records of older versions. ``skipped`` unreadable images were left out. ``preprocessing`` is
    that of pictures; without pictures it is None.
    """

    source: str
    classes: int
    class_names: tuple[str, ...] = ()
    train: int
    heldout: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: int = 0
    preprocessing: RecordedPreprocessing | None = None


def exported_shapes(model: ModelSource, export: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The sizes, with the batch, at which files of an export with free heights, widths or lengths are counted and timed.

    They are the network's own; empty if nothing but the batch is free. Of a network from a file they are those of its
    inputs.
    """
    if model.file_shapes:
        return dict(model.file_shapes)
    if not {*export.get("dynamic", ())} - {"batch"}:
        return {}
    return {spec.name: (export.get("batch") or 1, *spec.shape) for spec in exported_signature(model.signature, export)}


def exported_signature(signature: Signature, export: Mapping[str, Any]) -> Signature:
    """What the files of an export take."""
    return signature.as_pixels() if export.get("with_preprocessing") and signature.takes_images else signature
