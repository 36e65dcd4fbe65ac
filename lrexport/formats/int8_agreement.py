"""How much of a float32 network is left in int8, output by output, without labels.

Where an output is class scores, (B, K > 1), what matters is the class: the share of inputs that get the same one. Of other
floats it is the noise: SQNR = 10 · log10(Σ y² ÷ Σ (y − ŷ)²) in dB, over all inputs. Of integers, such as class maps, it is
the share of equal values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.formats.chosen_rows import chosen_outputs, modules_before_choice
from lrexport.formats.feeding import inputs_for
from lrexport.formats.graph_sessions import check_model, feed_of, open_graph
from lrexport.formats.sample_sessions import like_network
from lrexport.measure.latency import session
from lrexport.onnx_network.network import OnnxNetwork

# Cohen's κ up to which agreement counts as slight (Landis and Koch 1977, doi:10.2307/2529310).
_LEAST_KAPPA = 0.2
# Agreement that is good whatever κ is: if almost all inputs are of one class, κ means little.
_GOOD_AGREEMENT = 0.9
_ERRORS = 2.0  # standard errors of the agreement that are allowed for
# Least variance of an output over that of its error, in dB: at 0 dB the mean output would be as good.
_LEAST_DB = 3.0
_MOST_DB = 200.0  # what equal outputs count as: JSON has no infinity


@dataclass(frozen=True)
class Int8Agreement:
    """``same`` is the share of equal classes or values, ``sqnr_db`` the SQNR, by output; an output has one of them.

    ``incomparable`` are outputs whose number of values depends on the values, as that of boxes after suppression.
    ``relative_error`` is the largest difference of an output of floats relative to its largest value; None without one.
    """

    same: Mapping[str, float] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    incomparable: tuple[str, ...] = ()
    relative_error: float | None = None


def compare_int8(
    reference: Path, model: onnx.ModelProto, images: ImageSet, network: nn.Module | None = None
) -> Int8Agreement:
    """Compare ``model`` with ``reference``, the float32 file it was quantised from, on ``images``, without their labels.

    ``network`` is the one in the files: if it came from a file itself, the images are its inputs.

    Raises InputError if it declares other inputs or outputs, returns NaN or infinity, or if little is left of an output:
    less than nine of ten classes the same and hardly more than by chance, or an error about as large as the output varies.
    """
    if not isinstance(network, OnnxNetwork):  # whose graph nobody has checked strictly
        check_model(model)
    float32 = onnx.load(str(reference), load_external_data=False)
    expected, declared = _declared(float32), _declared(model)
    if declared != expected:
        raise InputError(f"the int8 graph of {reference.name} declares {declared} instead of {expected}")
    return _compared(reference, float32, like_network(open_graph(model), network), images, network)


def compare_session(reference: Path, quantised: Any, images: ImageSet, network: nn.Module | None = None) -> Int8Agreement:
    """:func:`compare_int8` for ``quantised``, a session of int8 files in any runtime, which takes the network's inputs."""
    return _compared(reference, onnx.load(str(reference), load_external_data=False), quantised, images, network)


def _compared(
    reference: Path, float32: onnx.ModelProto, quantised: Any, images: ImageSet, network: nn.Module | None
) -> Int8Agreement:
    """The agreement of both, where ``float32`` is the graph in the file ``reference``."""
    runtimes = (like_network(session(reference, threads=0), network), quantised)
    free = chosen_outputs(float32)
    names = [item.name for item in runtimes[0].get_outputs()]
    outputs = {name: _Output(name if len(names) > 1 else "") for name in names}
    # Outputs whose rows the network chooses by values, in an order that rounding decides as well.
    chosen: frozenset[int] | None = None
    for batch, samples in inputs_for(images, runtimes[0]):
        given = feed_of(runtimes[0], batch)
        if chosen is None:
            chosen = free if free and network is not None and modules_before_choice(network, batch) else frozenset()
            for place in chosen:
                outputs[names[place]].is_comparable = False
        for output, one, other in zip(outputs.values(), *(runtime.run(None, given) for runtime in runtimes), strict=True):
            output.add(_samples(one, samples, len(batch)), _samples(other, samples, len(batch)), reference.name)
    return _result(outputs, reference.name, len(images))


def _samples(output: Any, samples: int, batch: int) -> npt.NDArray[Any]:
    """An output without padding, if its first axis is the batch."""
    values = np.asarray(output)
    return values[:samples] if values.ndim and len(values) == batch else values


@dataclass
class _Output:
    """What one output's comparison has added up."""

    label: str
    classes: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = field(default_factory=lambda: ([], []))
    values: int = 0
    equal: int = 0
    total: float = 0.0
    squares: float = 0.0
    errors: float = 0.0
    largest: float = 0.0
    worst: float = 0.0
    is_float: bool = True
    is_comparable: bool = True

    def add(self, one: npt.NDArray[Any], other: npt.NDArray[Any], file: str) -> None:
        """Add what the float32 and the int8 file return for a batch. Raises InputError for NaN and infinity."""
        self.is_comparable &= one.shape == other.shape
        if not self.is_comparable:
            return
        self.is_float = one.dtype.kind == "f"
        if not self.is_float:
            self.values, self.equal = self.values + one.size, self.equal + int((one == other).sum())
            return
        for values, how in ((one, ""), (other, " in int8")):
            if not np.isfinite(values).all():
                where = f" in output {self.label!r}" if self.label else ""
                raise InputError(f"{file} returns NaN or infinity{where}{how}")
        if one.size:
            self.largest = max(self.largest, float(np.abs(one).max()))
            self.worst = max(self.worst, float(np.abs(one - other).max()))
        if one.ndim == 2 and one.shape[1] > 1:
            for classes, scores in zip(self.classes, (one, other), strict=True):
                classes.append(scores.argmax(1))
            return
        exact = one.astype(np.float64)
        self.values += one.size
        self.total += float(exact.sum())
        self.squares += float((exact**2).sum())
        self.errors += float(((exact - other) ** 2).sum())

    @property
    def sqnr_db(self) -> float:
        return _decibels(self.squares, self.errors)

    @property
    def left_db(self) -> float:
        """The variance over the error."""
        return _decibels(self.squares - self.total**2 / max(1, self.values), self.errors)


def _decibels(signal: float, error: float) -> float:
    if error <= 0:
        return _MOST_DB
    return 10 * math.log10(signal / error) if signal > 0 else -_MOST_DB


def _result(outputs: Mapping[str, _Output], file: str, images: int) -> Int8Agreement:
    same: dict[str, float] = {}
    sqnr: dict[str, float] = {}
    for name, output in outputs.items():
        of = f" of output {output.label!r}" if output.label else ""
        if not output.is_comparable:
            continue
        if output.classes[0]:
            same[name], kappa = class_agreement(*(np.concatenate(named) for named in output.classes))
            if is_by_chance(same[name], kappa, len(np.concatenate(output.classes[0]))):
                raise _useless(
                    f"in int8 {file} predicts the same class{of} for {100 * same[name]:.1f} % of {images} calibration "
                    f"images, hardly more than by chance (Cohen's κ {kappa:.2f})"
                )
        elif not output.is_float:
            same[name] = output.equal / max(1, output.values)
        else:
            sqnr[name] = round(output.sqnr_db, 2)
            if output.left_db < _LEAST_DB:
                raise _useless(
                    f"in int8 little is left{of} of {file}: its error on {images} calibration inputs is "
                    f"{100 / 10 ** (output.left_db / 10):.0f} % of the output's variance; expected at most "
                    f"{100 / 10 ** (_LEAST_DB / 10):.0f} % (SQNR {output.sqnr_db:.1f} dB)"
                )
    apart = [each.worst / each.largest for each in outputs.values() if each.is_comparable and each.largest > 0]
    incomparable = tuple(name for name, output in outputs.items() if not output.is_comparable)
    return Int8Agreement(same, sqnr, incomparable, max(apart, default=None))


def _useless(message: str) -> InputError:
    return InputError(message, "Are its weights trained? If so, try more --calibration-images. No files were written.")


def is_by_chance(same: float, kappa: float, count: int) -> bool:
    """Whether a share of equal classes among ``count`` is hardly more than chance gives, and not good only by bad luck."""
    error = math.sqrt(same * (1 - same) / count)  # a few inputs of mostly one class say little
    return kappa < _LEAST_KAPPA and same + _ERRORS * error < _GOOD_AGREEMENT


def class_agreement(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[float, float]:
    """Share of equal classes, and Cohen's κ: that share relative to chance by the classes' frequencies. (N,), (N,)."""
    count = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(classes, minlength=count) / len(classes) for classes in (first, second)]
    agreement, chance = float((first == second).mean()), float(shares[0] @ shares[1])
    return agreement, (agreement - chance) / (1 - chance) if chance < 1 else 1.0


def _declared(model: onnx.ModelProto) -> list[tuple[str, int, list[int]]]:
    """Name, type and shape of inputs and outputs as declared; 0 for a dynamic size, whose name may change."""
    return [
        (item.name, item.type.tensor_type.elem_type, [size.dim_value for size in item.type.tensor_type.shape.dim])
        for item in (*model.graph.input, *model.graph.output)
    ]
