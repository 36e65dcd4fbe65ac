"""One image file to RGB pixels, within limits: only the raster formats of data sets, by content, never by the file's name.

Pillow knows some forty formats more. Opening an EPS runs ghostscript, others read further files; none of them is tried.
"""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from lrexport.artifacts.plain_files import open_input

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# Pillow's own limit, as an error instead of a warning: 256 MiB as RGB.
MOST_PIXELS = 89_478_485
# What a file may have beyond its pixels, of 16 bytes at most: metadata, a film behind a photograph.
_MOST_OTHER_BYTES, _BYTES_A_PIXEL = 64 << 20, 16
# A progressive JPEG has about ten scans, each of which goes over the whole image.
_MOST_SCANS, _MOST_SCANNED = 64, 2_000_000_000
# A TIFF may list the same strip again and again.
_MOST_COVERED = 4
# A PNG's data comes in chunks of 8 KB as a rule; each of millions of empty ones is looked at by Pillow.
_MOST_CHUNKS, _BYTES_A_CHUNK = 10_000, 2_048
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# In a JPEG's coded data every 0xFF is followed by 0, by a restart marker or by another 0xFF; anything else ends it.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def decode(path: Path) -> Image.Image:
    """The image as RGB; of several in one file the first.

    Raises InputError for what is not a plain file, OSError for one that cannot be read, ValueError for one that is not
    an image of :data:`FORMATS` or that is larger than its limits, and whatever Pillow's decoders raise on a damaged one.
    """
    with open_input(path) as stream:
        _check_chunks(stream)
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"its content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
        with image:
            _check(image, stream)
            return image.convert("RGB")


def _check(image: Image.Image, stream: IO[bytes]) -> None:
    """Raise ValueError where decoding would take more than the image is worth; so far only its header was read."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise ValueError(f"it has {pixels / 1e6:.1f} megapixels; at most {MOST_PIXELS / 1e6:.1f} are decoded")
    size = os.fstat(stream.fileno()).st_size
    if size > _MOST_OTHER_BYTES + _BYTES_A_PIXEL * pixels:
        raise ValueError(f"{size:,} bytes are more than an image of {image.width}×{image.height} pixels has")
    covered = sum(abs((x1 - x0) * (y1 - y0)) for _, (x0, y0, x1, y1), *_ in getattr(image, "tile", ()))
    if covered > _MOST_COVERED * max(1, len(image.getbands())) * max(pixels, 1):
        raise ValueError("its parts cover the image many times over")
    if image.format in ("JPEG", "MPO"):
        scans = _scans(stream)
        if scans > _MOST_SCANS or scans * pixels > _MOST_SCANNED:
            raise ValueError(f"it has {scans} scans of {image.width}×{image.height} pixels, more than an image needs")


def _check_chunks(stream: IO[bytes]) -> None:
    """Raise ValueError for a PNG in more chunks than one writes (PNG specification, 5.3)."""
    head = stream.read(len(_PNG))
    if head == _PNG:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            most, place = _MOST_CHUNKS + len(data) // _BYTES_A_CHUNK, len(_PNG)
            for _ in range(most):
                if place >= len(data):
                    break
                place += 12 + int.from_bytes(data[place : place + 4], "big")
            else:
                raise ValueError(f"it is cut into more than {most:,} chunks")
    stream.seek(0)


def _scans(stream: IO[bytes]) -> int:
    """Scans of a JPEG up to its end (ITU-T T.81, annex B); what follows, such as a film, is none of it."""
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
