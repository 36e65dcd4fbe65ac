"""What a network that raises in its forward pass is told as: a wrong shape of the input, or a fault of its own code."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch

from lrexport.errors import InputError

# No shape of an input is behind these.
_OF_THE_CODE = (AttributeError, ImportError, KeyError, NameError, TypeError)
_OURS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


def forward_error(error: Exception, input_shape: tuple[int, ...]) -> InputError:
    """For an error that one input of ``input_shape`` ended in; what can only be the code's fault is told with its line."""
    if isinstance(error, _OF_THE_CODE):
        return InputError(
            f"the network raised {type(error).__name__}: {error}",
            place_in_code(error) or "It was called with one tensor, the batch first.",
        )
    return InputError(
        f"the network does not take an input of shape {tuple(input_shape)}: {error}",
        "Give the right one with --input-shape C,H,W.",
    )


def place_in_code(error: BaseException) -> str | None:
    """The line that an error of a network's code comes from: the innermost that is neither torch's nor lrexport's."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    others = (frame for frame in frames if not frame.filename.startswith((*_OURS, "<frozen ")))
    return next((f"It comes from {frame.filename}, line {frame.lineno}." for frame in others), None)
