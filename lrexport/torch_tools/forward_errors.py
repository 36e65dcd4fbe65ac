"""Errors of a network's forward pass: a wrong input shape, or a fault in its code."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

import torch

from lrexport.errors import InputError
from lrexport.signature import Signature

# Errors that a wrong input shape does not cause.
_OF_THE_CODE = (AttributeError, ImportError, KeyError, NameError, TypeError)
# How torch says that a tensor has another type than an operator takes.
_TYPES = re.compile(
    r"scalar types|[Ii]nput type|expected .*dtype|same dtype|expected scalar type|Expected tensor for argument"
)
# The types to which a forward casts that was written for weights in another precision.
_CASTS = re.compile(r"Half|BFloat16|[Dd]ouble")
_OURS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


def forward_error(error: Exception, signature: Signature) -> InputError:
    """The error for a forward pass that failed with inputs of ``signature``; faults of the code name its line."""
    if isinstance(error, _OF_THE_CODE):
        given = "one tensor" if len(signature) == 1 else ", ".join(signature.names)
        hint = place_in_code(error) or f"It was called with {given}, whose first axis is the batch."
        if isinstance(error, TypeError) and "argument" in str(error):
            hint += " Name all inputs with --input NAME=SHAPE[:DTYPE[:LOW..HIGH]]."
        return InputError(f"the network raised {type(error).__name__}: {error}", hint)
    if _CASTS.search(str(error)) and all(spec.dtype in (None, "float32") for spec in signature):
        place = place_in_code(error)
        return InputError(
            f"the network casts its inputs to another type than its weights have here, float32: {error}",
            f"{place + ' ' if place else ''}Cast to the weights' type in its forward, as in x.to(self.conv.weight.dtype).",
        )
    if _TYPES.search(str(error)):
        return InputError(
            f"the network does not accept inputs of this type ({_given(signature)}): {error}",
            "Give type and range with --input NAME=SHAPE:DTYPE:LOW..HIGH, as in --input tokens=50:int64:0..999.",
        )
    if isinstance(error, IndexError) or "out of range" in str(error):
        return InputError(
            f"the network raised {type(error).__name__} for random inputs ({_given(signature)}): {error}",
            "Give the range of its values with --input NAME=SHAPE:DTYPE:LOW..HIGH, as in --input tokens=50:int64:0..999.",
        )
    if len(signature) > 1:
        return InputError(f"the network does not accept inputs of {signature}: {error}", "Give the right ones with --input.")
    return InputError(
        f"the network does not accept an input of shape {signature.shape}: {error}",
        "Give the right shape with --input-shape C,H,W.",
    )


def _given(signature: Signature) -> str:
    return ", ".join(str(spec) for spec in signature)


def place_in_code(error: BaseException) -> str | None:
    """The innermost line of an error's traceback that is neither torch's nor lrexport's, in a sentence."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    others = (frame for frame in frames if not frame.filename.startswith((*_OURS, "<frozen ")))
    return next((f"It comes from {frame.filename}, line {frame.lineno}." for frame in others), None)
