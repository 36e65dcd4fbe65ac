"""Image files as RGB pixels; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lrexport.errors import InputError

Files = list[tuple[Path, int]]  # with their labels


def read_image(path: Path) -> Image.Image:
    """The image as RGB. Raises InputError naming a file that is none, is truncated, or is large beyond reason."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on a damaged file, IndexError and struct.error too
        raise _unreadable(path, error) from error


def size_of(path: Path) -> int:
    """Bytes of the file. Raises InputError naming one that cannot be had, as behind a link to nowhere."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return InputError(f"cannot read the image {path}: {reason}", "Remove or replace it.")
