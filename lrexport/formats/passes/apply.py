"""All passes, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from lrexport.formats.passes.shortcuts import convolved_shortcuts

SHORTCUTS = "shortcuts"
# Each changes a graph in place so that it computes the same, and returns how many places it changed.
_PASSES: Mapping[str, Callable[[onnx.ModelProto], int]] = {SHORTCUTS: convolved_shortcuts}


def with_passes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """``model`` in the form that runtimes are fast at, and how many places each pass changed; itself if none did.

    The result still has to be compared with the network.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    changed = {name: count for name, apply in _PASSES.items() if (count := apply(made))}
    return (made, changed) if changed else (model, {})
