"""Colours of classes, and pixels as data URIs."""

from __future__ import annotations

import base64
import colorsys
import io
import math
from typing import Any

_MOST_PNG_BYTES = 40_000
# Paul Tol's muted and bright schemes, without grey: colour-blind people tell them apart.
_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#882255", "#999933"),
    *("#cc6677", "#332288", "#44aa99", "#ddcc77", "#88ccee", "#117733"),
)
OPACITY = 150  # of 255, of masks over a picture


def colour_of(label: int) -> str:
    """The colour of a class."""
    if label < len(_COLOURS):
        return _COLOURS[label]
    hue = math.modf(label * 0.6180339887)[0]  # the golden ratio: classes in a row get distant hues
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.5, 0.6))


def data_uri(pixels: Any) -> str:
    """A data URI: PNG, or JPEG for a photograph that would be large."""
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    kind, content = "png", stream.getvalue()
    if len(content) > _MOST_PNG_BYTES and image.mode == "RGB":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90, subsampling=0)
        kind, content = "jpeg", stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
