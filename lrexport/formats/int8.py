"""A verified float32 ONNX file → the same network in int8 (QDQ), calibrated on real images and compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from lrexport.artifacts import files
from lrexport.data.images import ImageSet
from lrexport.errors import InputError, LrexportError
from lrexport.formats.feeding import inputs_for
from lrexport.formats.graph_sessions import feed_of
from lrexport.formats.int8_agreement import Int8Agreement, compare_int8
from lrexport.formats.onnx import strip
from lrexport.formats.sample_sessions import SampleSession, like_network
from lrexport.measure.latency import session
from lrexport.measure.macs.onnx_int8 import int8_nodes
from lrexport.measure.macs.onnx_macs import GraphCost, count_onnx
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.quiet import quiet


@dataclass(frozen=True)
class Quantised:
    """A finished int8 file. ``int8_macs`` of ``cost.macs`` are in int8; ``in_float`` names nodes that stay in float32.

    ``agreement`` compares its outputs with those of the float32 file on the calibration images.
    """

    path: Path
    bytes: int
    cost: GraphCost
    int8_macs: int
    in_float: tuple[str, ...]
    agreement: Int8Agreement


def quantise_onnx(
    source: str | Path,
    path: str | Path,
    images: ImageSet,
    shapes: Mapping[str, Sequence[int]] | None = None,
    network: nn.Module | None = None,
) -> Quantised:
    """Write ``source`` to ``path`` with int8 weights and activations; input, output, opset and batch stay the same.

    ``images``, without labels, determine the ranges of activations; MACs of a graph with free sizes are counted for
    ``shapes``, sizes by input name. ``network`` is the one in the file, which takes the images if it came from a file
    itself. Raises InputError if onnxruntime cannot quantise the
    graph, or if the quantised network is useless; then nothing is written.
    """
    source, path = Path(source), Path(path)
    model = _quantise(source, images, path.parent, network)
    strip(model)
    model.metadata_props.extend(onnx.load(str(source), load_external_data=False).metadata_props)
    agreement = compare_int8(source, model, images, network)
    content = model.SerializeToString()
    files.write_bytes(path, content)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value  # 0 if dynamic
    cost, small = count_onnx(model, shapes, batch=batch or None), int8_nodes(model)
    in_float = tuple(node.name for node in cost.nodes if node.name not in small)
    int8_macs = sum(node.macs for node in cost.nodes if node.name in small)
    return Quantised(path, len(content), cost, int8_macs, in_float, agreement)


def _quantise(source: Path, images: ImageSet, folder: Path, network: nn.Module | None) -> onnx.ModelProto:
    """onnxruntime's static quantisation, with temporary files in ``folder``."""
    from onnxruntime import quantization

    with quiet(), tempfile.TemporaryDirectory(dir=folder, prefix=".int8-") as scratch:
        prepared, finished = Path(scratch) / "prepared.onnx", Path(scratch) / "finished.onnx"
        try:
            # Folds BatchNorm and constants that onnxsim left, and infers types for the quantiser. Its symbolic inference
            # adds nothing to a simplified graph.
            quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(finished),
                _Calibration(source, images, network),
                quant_format=quantization.QuantFormat.QDQ,
                # Output channels differ in range; one scale for a whole kernel loses another 2 dB.
                per_channel=True,
                # ONNX Runtime has integer kernels for symmetric signed weights and unsigned activations on x86 and ARM. On
                # x86 it turns signed activations into unsigned ones at loading, but only those with one reader: at a
                # residual connection types no longer match, and half of ResNet-20 runs in float.
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
                # Weights in -64…64: x86 without VNNI adds two products in 16 bits, and 2 · 255 · 64 is the largest sum that
                # fits. With 8 bits, a low-rank ResNet-20 without loss elsewhere loses 4 points there.
                reduce_range=True,
                # The full observed range: within half a dB of the best percentile, which would need all activations of all
                # images in memory.
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            return onnx.load(str(finished))
        except (LrexportError, OSError):
            raise
        except Exception as error:  # onnxruntime raises arbitrary errors
            raise InputError(
                f"onnxruntime could not quantise {source.name}: {first_line(error)}", "Export without --int8."
            ) from error


class _Calibration:
    """Batches of images for onnxruntime, as a CalibrationDataReader: dictionaries of inputs, then None."""

    def __init__(self, source: Path, images: ImageSet, network: nn.Module | None) -> None:
        self._runtime = like_network(session(source), network)
        # Repeating an image to fill a batch does not change the range of values. A dynamic batch is kept small: the graph
        # for calibration is not optimised and holds many activations at a time.
        self._feeds = self._all(inputs_for(images, self._runtime, dynamic_batch=16))

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def _all(self, batches: Iterator[tuple[Batch, int]]) -> Iterator[dict[str, Any]]:
        for batch, _count in batches:
            feed = feed_of(self._runtime, batch)
            if isinstance(self._runtime, SampleSession):
                yield from self._runtime.portions(feed)
            else:
                yield feed
