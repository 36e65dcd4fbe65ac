"""Whether a runtime's outputs are those of ONNX Runtime. Self-contained: sent to devices with the runner.

Coarse on purpose: it tells another network from the same one, not one rounding from another. Kernels round differently
(Winograd by about 1e-4 of the largest value); a layer that is missing, transposed or read in another order is far off.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]

TOLERANCE = 1e-3
# Rounding between steps of 1/255 adds up over the layers of an int8 network.
INT8_TOLERANCE = 0.15
# A channel near 0 has the rounding errors of the large values that it is computed from.
_OF_CHANNEL = 10.0
_MOST_OTHERS = 0.01  # of integers and booleans: near-ties


class OutputsDiffer(ValueError):
    """The runtime's file is another network: the message names the output and the channel."""


def check_outputs(expected: JsonObject, actual: JsonObject, tolerance: float) -> None:
    """Raise OutputsDiffer unless every output, and every channel of it, is within the tolerance of its largest value."""
    for name, values in expected.items():
        if name not in actual:
            raise OutputsDiffer(f"output {name!r} is missing")
        _check_output(name, values, actual[name], tolerance)


def _check_output(name: str, expected: Any, actual: Any, tolerance: float) -> None:
    import numpy

    if list(expected.shape) != list(actual.shape):
        raise OutputsDiffer(f"output {name!r} has shape {_joined(actual)}, in ONNX Runtime {_joined(expected)}")
    if not expected.size:
        return
    if expected.dtype.kind not in "fc":
        share = float(numpy.mean(expected != actual))
        if share > _MOST_OTHERS:
            raise OutputsDiffer(f"{100 * share:.0f} % of the values of output {name!r} differ from ONNX Runtime's")
        return
    wide, mine = (numpy.atleast_1d(array).astype(numpy.float64) for array in (expected, actual))
    same = (wide == mine) | (numpy.isnan(wide) & numpy.isnan(mine))
    with numpy.errstate(invalid="ignore"):
        apart = numpy.where(same, 0.0, numpy.nan_to_num(numpy.abs(mine - wide), nan=numpy.inf, posinf=numpy.inf))
    size = numpy.where(numpy.isfinite(wide), numpy.abs(wide), 0.0)
    largest = float(size.max()) or 1.0
    axis = 1 if wide.ndim > 1 else 0
    others = tuple(number for number in range(wide.ndim) if number != axis)
    by_channel, scales = apart.max(axis=others), size.max(axis=others)
    allowed = tolerance * numpy.minimum(largest, _OF_CHANNEL * scales + largest / _OF_CHANNEL)
    over = by_channel > allowed
    if not over.any():
        return
    channel = int(numpy.argmax(numpy.where(over, by_channel / allowed, 0.0)))
    within = numpy.moveaxis(apart, axis, 0)[channel]
    place = [int(number) for number in numpy.unravel_index(int(within.argmax()), within.shape)]
    index = (*place[:axis], channel, *place[axis:])
    raise OutputsDiffer(
        f"output {name!r} differs from ONNX Runtime's by {by_channel[channel] / largest:.2g} of its largest value in "
        f"channel {channel}: {mine[index]:.6g} instead of {wide[index]:.6g}, in {int(over.sum())} of {over.size} channels"
    )


def _joined(array: Any) -> str:
    return ",".join(map(str, array.shape)) or "scalar"
