"""Errors of a network's forward pass: a wrong input shape, or a fault in its code."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch

from lrexport.errors import InputError

# Errors that a wrong input shape does not cause.
_OF_THE_CODE = (AttributeError, ImportError, KeyError, NameError, TypeError)
_OURS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


def forward_error(error: Exception, input_shape: tuple[int, ...]) -> InputError:
    """The error for a forward pass that failed with an input of ``input_shape``; faults of the code name its line."""
    if isinstance(error, _OF_THE_CODE):
        return InputError(
            f"the network raised {type(error).__name__}: {error}",
            place_in_code(error) or "It was called with one tensor, whose first axis is the batch.",
        )
    return InputError(
        f"the network does not accept an input of shape {tuple(input_shape)}: {error}",
        "Give the right shape with --input-shape C,H,W.",
    )


def place_in_code(error: BaseException) -> str | None:
    """The innermost line of an error's traceback that is neither torch's nor lrexport's, in a sentence."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    others = (frame for frame in frames if not frame.filename.startswith((*_OURS, "<frozen ")))
    return next((f"It comes from {frame.filename}, line {frame.lineno}." for frame in others), None)
