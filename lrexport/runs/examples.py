"""examples.npz of a run: pictures of a few held-out samples, and what the dense and the compressed network make of them.

The file has the array ``about``, a JSON text with the fields of :class:`About`, and arrays of pixels for each example by its
place: ``0.picture`` (H, W, 3) uint8; ``0.target``, ``0.dense`` and ``0.compressed``, pictures (H, W, 3) uint8 or classes of
pixels (H, W) uint16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from lrexport.artifacts.arrays import npz_bytes, read_arrays
from lrexport.artifacts.json_files import first_fault, parse_json
from lrexport.artifacts.run_files import EXAMPLES
from lrexport.config.compression import MOST_EXAMPLES
from lrexport.errors import InputError, UsageError
from lrexport.metric import Metric
from lrexport.stored import Stored
from lrexport.units import format_bytes

if TYPE_CHECKING:
    from lrexport.runs.record import Record

SIDE = 256  # pixels, the longer side of a picture at most
MOST_BOXES, MOST_GUESSES = 12, 3
LEAST_SCORE = 0.3  # of boxes that are shown
NOT_COUNTED = 65535  # the class of pixels that are left out
_MOST_OUTPUTS = 32
# Four pictures for each example, the text, and what NumPy writes before an array.
_MOST_BYTES = MOST_EXAMPLES * 4 * (SIDE * SIDE * 3 + 4096) + (4 << 20)
_PARTS = ("target", "dense", "compressed")
_HINT = "Copy it again, or give --examples 0 for a report without pictures."

Share = Annotated[float, Field(ge=0, le=1)]
# "classes": scores of classes; "masks": a class for each pixel; "boxes": objects; "pictures"; "values": anything else.
Form = Literal["classes", "masks", "boxes", "pictures", "values"]

Reason = Literal["random", "worst"]


class Guess(Stored):
    """A class and its probability."""

    label: int
    share: Share


class Box(Stored):
    """An object: x1, y1, x2, y2 as shares of the picture's width and height, its class, and its score; a target has none."""

    corners: tuple[Share, Share, Share, Share]
    label: int
    score: float | None = None


class Said(Stored):
    """What a network or a target says of a sample, apart from pixels. ``more`` boxes were left out."""

    guesses: tuple[Guess, ...] = Field(default=(), max_length=MOST_GUESSES)
    boxes: tuple[Box, ...] = Field(default=(), max_length=MOST_BOXES)
    more: int = 0


class Example(Stored):
    """One sample: its ``number`` among the held-out ones, and why it was chosen.

    ``dense_score`` and ``score`` are the metric on this sample alone, None where it has none. ``sqnr_db`` compares the two
    networks' outputs, by name. ``label`` is the class of the sample. ``stretched``: the range of the pixels is not known, so
    they were stretched from the least to the greatest value.
    """

    number: int = Field(ge=0)
    why: Reason
    form: Form
    label: int | None = None
    dense_score: float | None = None
    score: float | None = None
    sqnr_db: dict[str, float] = Field(default={}, max_length=_MOST_OUTPUTS)
    stretched: bool = False
    target: Said | None = None
    dense: Said = Said()
    compressed: Said = Said()


class RecordedMetric(Stored):
    """The fields of :class:`lrexport.metric.Metric`."""

    name: str = Field(min_length=1, max_length=200)
    unit: str = Field(default="", max_length=40)
    higher_is_better: bool = True


class About(Stored):
    """All examples: the worst are the worst of ``considered`` held-out samples, by ``metric`` if it is known."""

    schema_version: Literal[1] = 1
    considered: int
    metric: RecordedMetric | None = None
    examples: tuple[Example, ...] = Field(max_length=MOST_EXAMPLES)


@dataclass(frozen=True)
class Examples:
    """The examples with their pixels, by the names of the arrays."""

    about: About
    pixels: Mapping[str, Any]

    @property
    def metric(self) -> Metric | None:
        """The metric that decided which are the worst."""
        known = self.about.metric
        return None if known is None else Metric(known.name, known.unit, known.higher_is_better)

    def of(self, place: int, part: str) -> Any:
        """The pixels of a part of an example, None if it has none."""
        return self.pixels.get(f"{place}.{part}")

    def packed(self) -> bytes:
        """The content of the file."""
        import numpy as np

        text = json.dumps(self.about.model_dump(mode="json"), allow_nan=False)
        return npz_bytes({"about": np.array(text), **self.pixels}, compress=True)


def read_examples(run: Path, record: Record) -> Examples | None:
    """The examples of a run, None if it has none.

    Raises InputError for a damaged file, or one with more or larger pictures than lrexport writes.
    """
    stored = record.files.get(EXAMPLES)
    if stored is None:
        return None
    path = run / EXAMPLES
    if stored.bytes > _MOST_BYTES:
        raise InputError(
            f"{path} has {format_bytes(stored.bytes)}; expected at most {format_bytes(_MOST_BYTES)}",
            "It was not written by lrexport. Give --examples 0 for a report without pictures.",
        )
    arrays = read_arrays(record.check(run, EXAMPLES), _MOST_BYTES, _HINT)
    try:
        about = About.model_validate(parse_json(str(arrays.pop("about")).encode()))
        made = Examples(about, arrays)
        assert made.metric is None or made.metric.name  # for its errors
        _check_pixels(made)
    except ValidationError as error:
        raise InputError(f"{path} does not contain examples: {first_fault(error)}", _HINT) from error
    except KeyError as error:
        raise InputError(f"{path} does not contain examples: it has no array {error}", _HINT) from error
    except (ValueError, UsageError) as error:
        raise InputError(f"{path} does not contain examples: {error}", _HINT) from error
    return made


def _check_pixels(examples: Examples) -> None:
    """Raise KeyError or ValueError unless there are the pixels that each example needs, and no others."""
    left = {*examples.pixels}
    for place, example in enumerate(examples.about.examples):
        needed = {"picture"}
        needed |= {"dense", "compressed"} if example.form in ("masks", "pictures") else set()
        for part in ("picture", *_PARTS):
            name = f"{place}.{part}"
            if name not in left:
                if part in needed:
                    raise KeyError(name)
                continue
            left.discard(name)
            _check_array(name, examples.pixels[name], is_mask=part != "picture" and example.form == "masks")
    if left:
        raise ValueError(f"unexpected array {min(left)!r}")


def _check_array(name: str, array: Any, is_mask: bool) -> None:
    shape, kind = tuple(array.shape), str(array.dtype)
    fits = kind == "uint16" and len(shape) == 2 if is_mask else kind == "uint8" and len(shape) == 3 and shape[2] == 3
    if not fits or not all(0 < side <= SIDE for side in shape[:2]):
        expected = "uint16 (height, width)" if is_mask else "uint8 (height, width, 3)"
        raise ValueError(f"array {name!r} is {kind} {shape}; expected {expected} of at most {SIDE} pixels a side")
