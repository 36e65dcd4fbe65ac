"""A verified ONNX file → ONNX Runtime's own format (.ort), for its small builds on phones and boards.

An .ort file holds the graph as optimised on this machine; the runtime that loads it optimises little more. So optimisations
for this processor only are not allowed: the NCHWc transformer, which arranges weights in blocks as wide as the processor's
vectors, is disabled, as in the runtime's own converter. On x86 this costs speed: the .onnx file, arranged when it is
loaded, is faster there if a full runtime can load it.
https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from lrexport.artifacts import files
from lrexport.errors import InputError
from lrexport.formats.agreement import RELATIVE_TOLERANCE, Array, ComparedOutputs, Terms, check_agreement
from lrexport.formats.chosen_rows import MOST_APART, chosen_outputs, matched_rows
from lrexport.formats.graph_sessions import feed_of, open_graph
from lrexport.formats.sample_sessions import like_network
from lrexport.measure.latency import session
from lrexport.signature import InputSpec, Signature
from lrexport.torch_tools.batch import Batch, draw_input

Platform = Literal["amd64", "arm"]
# Whether activations may stay signed int8: good on ARM, slow on x86, where they become unsigned. Irrelevant in float32.
_SIGNED_INT8: dict[Platform, str] = {"amd64": "0", "arm": "1"}
_MACHINE_SPECIFIC = ["NchwcTransformer"]
# Differently fused quantised graphs round differently: by a few steps of 1/255 of the largest output.
_INT8_TOLERANCE = 0.03
# For all slices: activations are rounded to 1/255 of the whole tensor's range.
_INT8_STEP = 2 / 255
_DYNAMIC_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class OrtFile:
    """A finished file, and its largest difference from the ONNX file relative to the largest output.

    ``sizes`` are those of the first input at which they were compared.
    """

    path: Path
    bytes: int
    relative_error: float
    sizes: tuple[tuple[int, ...], ...] = ()


def write_ort(
    source: str | Path,
    path: str | Path,
    platform: Platform,
    signature: Signature | None = None,
    network: nn.Module | None = None,
) -> OrtFile:
    """Write the ONNX file ``source`` to ``path``, which must end in .ort, for processors of ``platform``.

    It is loaded again and compared with ``source`` on random inputs, of the sizes, types and ranges in ``signature`` where
    the file leaves them open; ``network`` is the one in the file. Raises InputError if ONNX Runtime cannot write it or
    the outputs differ; then ``path`` is not written.
    """
    source, path = Path(source), Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ort-") as scratch:
        made = Path(scratch) / "model.ort"
        _convert(source, made, platform)
        error, sizes = _compare(source, made, signature, network)
        files.write_bytes(path, made.read_bytes())
    return OrtFile(path, path.stat().st_size, error, sizes)


def _convert(source: Path, made: Path, platform: Platform) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; names would be printed raw
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(made)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", _SIGNED_INT8[platform])
    try:
        onnxruntime.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=_MACHINE_SPECIFIC
        )
    except Exception as error:  # no common base except Exception
        raise InputError(f"ONNX Runtime cannot write {source.name} in its own format: {error}") from error


def _compare(
    source: Path, made: Path, signature: Signature | None, network: nn.Module | None
) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """The largest relative difference of the outputs, and the sizes of the first input that they were compared at.

    Raises InputError if it exceeds the tolerance.
    """
    before, after = like_network(session(source), network), like_network(session(made), network)
    inputs = {
        f"random input {number + 1}, batch {size}": given for number, (size, given) in enumerate(_draws(before, signature))
    }

    def outputs(runtime: Any) -> list[list[Array]]:
        runs = (runtime.run(None, given) for given in inputs.values())
        return [[np.asarray(output).astype(np.float64) for output in run] for run in runs]

    expected, actual = outputs(before), outputs(after)
    names = [item.name for item in before.get_outputs()]
    model = onnx.load(str(source), load_external_data=False)
    quantised, chosen = _is_quantised(model), chosen_outputs(model)
    terms = Terms(
        "the file in ONNX Runtime's own format",
        source.name,
        _INT8_TOLERANCE if quantised else RELATIVE_TOLERANCE,
        _INT8_STEP if quantised else 0.0,
    )
    worst, other_rows = 0.0, False
    for number, name in enumerate(names):

        def rounding(number: int = number) -> list[Array]:
            """The largest change of the output by optimising the graph."""
            plain = outputs(like_network(open_graph(source, as_written=True), network))
            return [np.abs(one[number] - two[number]) for one, two in zip(plain, expected, strict=True)]

        pairs = [
            ComparedOutputs(label, one[number], two[number])
            for label, one, two in zip(inputs, expected, actual, strict=True)
        ]
        named = name if len(names) > 1 else ""
        try:
            worst = max(worst, check_agreement(pairs, rounding, terms, named).relative_error)
        except InputError:  # boxes that are chosen by values may have another order, or be others
            if number not in chosen:
                raise
            other_rows = True
    if other_rows:
        _check_rows(source, chosen, expected, actual)
    return worst, tuple(dict.fromkeys(tuple(next(iter(given.values())).shape) for given in inputs.values()))


def _check_rows(source: Path, chosen: frozenset[int], expected: list[list[Array]], actual: list[list[Array]]) -> None:
    """Raise InputError unless most rows of the outputs ``chosen`` by values are the same."""
    same = every = 0
    for one, two in zip(expected, actual, strict=True):
        together: dict[tuple[int, int], list[int]] = {}
        for place in sorted(chosen):
            together.setdefault((len(one[place]), len(two[place])), []).append(place)
        for places in together.values():
            counts = matched_rows([one[place] for place in places], [two[place] for place in places])
            same, every = same + counts[0], every + counts[1]
    if every - same > MOST_APART * every:
        raise InputError(
            f"{100 * (every - same) / every:.1f} % of {every:,} rows are returned only by {source.name} or only by the "
            f"file in ONNX Runtime's own format; expected at most {100 * MOST_APART:g} %",
            "Which rows it returns depends on values, and rounding decides between nearly equal ones. Are its weights "
            "trained? No files were written.",
        )


def _draws(runtime: Any, signature: Signature | None) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Random inputs to compare on: for a fixed batch several times, or for several sizes of a dynamic one."""
    declared = runtime.get_inputs()
    known = signature or Signature(tuple(InputSpec(item.name, tuple(item.shape[1:])) for item in declared))
    fixed = declared[0].shape[0]
    like = torch.empty(0)
    for number, size in enumerate((fixed,) * len(_DYNAMIC_BATCHES) if isinstance(fixed, int) else _DYNAMIC_BATCHES):
        generator = torch.Generator().manual_seed(number)
        drawn = tuple(draw_input(spec, size, like, generator) for spec in known)
        yield size, feed_of(runtime, Batch(drawn, known.names))


def _is_quantised(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
