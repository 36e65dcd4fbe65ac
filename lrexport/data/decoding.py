"""Decode one image file to RGB, or a mask, within limits: only raster formats, detected by content, not by name.

Pillow has about forty more formats; none is tried, because EPS runs ghostscript, and others read further files.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lrexport.artifacts.plain_files import open_input

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# Pillow warns above this limit, 256 MiB as RGB; here it is an error.
MOST_PIXELS = 89_478_485
# Bytes that a file may have besides 16 bytes a pixel: metadata, a video after a photograph.
_MOST_OTHER_BYTES, _BYTES_A_PIXEL = 64 << 20, 16
# A progressive JPEG has about ten scans, each of which decodes the whole image.
_MOST_SCANS, _MOST_SCANNED = 64, 2_000_000_000
# A TIFF may list the same strip many times.
_MOST_COVERED = 4
# PNG encoders usually write chunks of 8 KB; millions of empty chunks would take Pillow minutes.
_MOST_CHUNKS, _BYTES_A_CHUNK = 10_000, 2_048
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# In a JPEG's coded data every 0xFF is followed by 0, a restart marker or another 0xFF; any other byte ends the data.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def decode(path: Path) -> Image.Image:
    """The image as RGB; the first if the file has several.

    Raises InputError if ``path`` is not a plain file, OSError if it cannot be read, ValueError if it is not an image in
    one of :data:`FORMATS` or exceeds a limit, and whatever Pillow's decoders raise on damaged files.
    """
    with _opened(path) as image:
        return image.convert("RGB")


def decode_mask(path: Path) -> npt.NDArray[np.uint8]:
    """The values of a mask, (H, W): grey values, or places in its palette. Raises as :func:`decode`.

    Raises ValueError for colours without a palette, for values over 255, and for JPEG, which changes values.
    """
    with _opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError("it is a JPEG, which does not keep the values of a mask; write masks as PNG")
        values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., : {"LA": 1, "RGB": 3, "RGBA": 3}.get(image.mode, 0)]
        if not colours.size or not (colours == colours[..., :1]).all():
            raise ValueError(f"it has colours ({image.mode}); expected one channel with the number of a class in each pixel")
        values = values[..., 0]
    if values.dtype.kind not in "bui" or (values.size and (values.min() < 0 or values.max() > 255)):
        raise ValueError("it has values outside of 0 to 255; expected the number of a class in each pixel")
    return values.astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image, of which only the header has been read and checked."""
    with open_input(path) as stream:
        _check_chunks(stream)
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
        with image:
            _check(image, stream)
            yield image


def _check(image: Image.Image, stream: IO[bytes]) -> None:
    """Raise ValueError if decoding would take unreasonable time or memory; only the header has been read so far."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise ValueError(f"it has {pixels / 1e6:.1f} megapixels; the limit is {MOST_PIXELS / 1e6:.1f}")
    size = os.fstat(stream.fileno()).st_size
    if size > _MOST_OTHER_BYTES + _BYTES_A_PIXEL * pixels:
        raise ValueError(f"it has {size:,} bytes, too many for {image.width}×{image.height} pixels")
    covered = sum(abs((x1 - x0) * (y1 - y0)) for _, (x0, y0, x1, y1), *_ in getattr(image, "tile", ()))
    if covered > _MOST_COVERED * max(1, len(image.getbands())) * max(pixels, 1):
        raise ValueError("its parts cover the image many times over")
    if image.format in ("JPEG", "MPO"):
        scans = _scans(stream)
        if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED:
            raise ValueError(f"it has {scans} scans of {image.width}×{image.height} pixels, too many for an image")


def _check_chunks(stream: IO[bytes]) -> None:
    """Raise ValueError for a PNG with more chunks than any encoder writes (PNG specification, 5.3)."""
    head = stream.read(len(_PNG))
    if head == _PNG:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            most, place = _MOST_CHUNKS + len(data) // _BYTES_A_CHUNK, len(_PNG)
            for _ in range(most):
                if place >= len(data):
                    break
                place += 12 + int.from_bytes(data[place : place + 4], "big")
            else:
                raise ValueError(f"it has more than {most:,} chunks, too many for its size")
    stream.seek(0)


def _scans(stream: IO[bytes]) -> int:
    """Number of scans of a JPEG up to its end marker (ITU-T T.81, annex B); a video may follow it."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scans, place = 0, len(_JPEG)
        while (marker := _MARKER.search(data, place)) is not None:
            kind, place = data[marker.start() + 1], marker.end()
            if kind == _END:
                break
            scans += kind == _SCAN
            if kind not in _ALONE:
                place += int.from_bytes(data[place : place + 2], "big")
            if scans > _MOST_SCANS:
                break
    return scans
