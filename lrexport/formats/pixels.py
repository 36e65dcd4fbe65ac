"""Files that take pictures as they are: uint8 (B, H, W, C), RGB or grey, with the normalisation in the graph.

What a file expects, and the names of its classes, are in its metadata as JSON: ``lrexport.preprocessing`` has the fields of
:class:`lrexport.preprocessing.Preprocessing`, and ``in_graph``; ``lrexport.classes`` is a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lrexport.data.preprocessing import Normalisation
from lrexport.errors import UsageError
from lrexport.preprocessing import METADATA_KEY, Preprocessing
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch

PREPROCESSING, CLASSES = METADATA_KEY, "lrexport.classes"
_IN_GRAPH = "in_graph"


def check_takes_pictures(signature: Signature, preprocessing: Preprocessing | None) -> Preprocessing:
    """The preprocessing that a file can do itself. Raises UsageError unless the input is a picture and it is known."""
    if not signature.takes_images:
        raise UsageError(
            f"the network takes {signature}; normalisation in the graph needs one image (C, H, W) as its only input",
            "Omit --with-preprocessing.",
        )
    if preprocessing is None:
        raise UsageError(
            "normalisation in the graph needs the preprocessing of the network, which neither a run with data nor the "
            "source of the network says",
            "Compress with --data, or give --data here.",
        )
    if len(preprocessing.mean) != signature.shape[0]:
        numbers = f"{len(preprocessing.mean)} numbers"
        raise UsageError(f"mean and std have {numbers}; the network takes {signature.shape[0]} channels")
    return preprocessing


@contextmanager
def taking_pixels(network: nn.Module, preprocessing: Preprocessing) -> Iterator[None]:
    """Inside the block, the network takes uint8 (B, H, W, C) instead of its float input (B, C, H, W).

    A wrapper module would change the names of all weights and layers in the graph.
    """
    normalise = Normalisation.of(preprocessing, torch.device("cpu"))
    original, had_its_own = network.forward, "forward" in vars(network)

    def forward(pixels: Tensor) -> Any:
        images = pixels.permute(0, 3, 1, 2)
        if preprocessing.channels == "bgr":
            images = images.flip(1)
        kinds = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
        kind = next(kinds, torch.float32)
        return original((images.to(kind) - normalise.mean.to(kind)) * normalise.scale.to(kind))

    network.forward = forward
    try:
        yield
    finally:
        if had_its_own:
            network.forward = original
        else:
            del network.forward


def to_pixels(batch: Batch, preprocessing: Preprocessing) -> Batch:
    """The pictures, uint8 (B, H, W, C), that a batch of inputs (B, C, H, W) was made from."""
    normalise = Normalisation.of(preprocessing, torch.device("cpu"))
    images = (batch.only.cpu() / normalise.scale + normalise.mean).round().clamp(0, 255).to(torch.uint8)
    if preprocessing.channels == "bgr":
        images = images.flip(1)
    return Batch((images.permute(0, 2, 3, 1).contiguous(),), batch.names)


def describe(
    model: onnx.ModelProto, preprocessing: Preprocessing | None, in_graph: bool, classes: Sequence[str] = ()
) -> None:
    """Write what is known into the metadata, in place."""
    if preprocessing is not None:
        value = {**preprocessing.to_plain(), _IN_GRAPH: in_graph}
        model.metadata_props.add(key=PREPROCESSING, value=json.dumps(value))
    if classes:
        model.metadata_props.add(key=CLASSES, value=json.dumps([*classes]))


def preprocessing_in(metadata: Mapping[str, str]) -> Preprocessing | None:
    """The preprocessing that the graph of one of lrexport's files does, by the file's metadata."""
    text = metadata.get(PREPROCESSING)
    value = json.loads(text) if text is not None else {}
    if not value.pop(_IN_GRAPH, False):
        return None
    fields: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
    return Preprocessing(**fields)
