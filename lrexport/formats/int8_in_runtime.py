"""A runtime's verified float32 files → its int8 files, made by its own quantiser, compared with the ONNX file and scored."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from lrexport.config.runtime_titles import title_of
from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.formats.feeding import inputs_for
from lrexport.formats.file_scores import score_onnx
from lrexport.formats.graph_sessions import feed_of
from lrexport.formats.in_runtime import Subject, refusing, taking
from lrexport.formats.int8_agreement import Int8Agreement, compare_session
from lrexport.formats.sample_sessions import SampleSession
from lrexport.measure.latency import session
from lrexport.measure.runtime_session import RuntimeSession
from lrexport.measure.runtimes.base import Ports
from lrexport.measure.targets.artefacts import quantised
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs.scores import Score


@dataclass(frozen=True)
class Int8InRuntime:
    """Finished int8 files, what ``tool`` made them, and their score in the runtime; ``notes`` name what stays in float32.

    ``agreement`` compares them with the float32 ONNX file in ONNX Runtime, on the calibration images.
    """

    bytes: int
    tool: str
    agreement: Int8Agreement
    score: Score | None
    notes: tuple[str, ...]


def write_int8_in_runtime(
    source: Path,
    floats: Sequence[Path],
    paths: Sequence[Path],
    runtime: str,
    python: str | None,
    ports: Ports,
    subject: Subject,
    calibration: ImageSet,
) -> Int8InRuntime:
    """Write the int8 files of the runtime's float32 files ``floats`` to ``paths``.

    ``source`` is their ONNX file, ``ports`` the inputs and outputs that they were made for. ``calibration``, without labels,
    determines the ranges of activations. Raises InputError if the quantiser fails or if little is left of an output: then
    the files are not valid; DeviceError without the quantiser.
    """
    title, network = title_of(runtime), subject.network
    metadata = session(source).get_modelmeta().custom_metadata_map
    with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
        folder = Path(name)
        inputs = _write_inputs(calibration, ports, metadata, subject, folder)
        with refusing(f"{title} cannot have {source.name} in int8"):
            made = quantised(source.name, floats, inputs, _zero_filters(source), runtime, python, folder, title)
        for file, path in zip(made["files"], paths, strict=True):
            path.write_bytes(Path(file).read_bytes())
    free_batch = not isinstance(network, OnnxNetwork)
    with RuntimeSession(runtime, python, paths, ports, metadata, free_batch) as mine:
        runs = taking(mine, network)
        try:
            agreement = compare_session(source, runs, calibration, network)
        except InputError as error:
            raise InputError(f"{title}: {error.message}", error.hint) from error
        scored = None
        if subject.images is not None and subject.task is not None:
            scored = score_onnx(paths[0], subject.images, "test", subject.task, subject.like, None, runtime=runs)
    total = sum(path.stat().st_size for path in paths)
    return Int8InRuntime(total, made["tool"], agreement, scored, tuple(made["notes"]))


def _zero_filters(source: Path) -> list[str]:
    """The outputs of convolutions with a filter of zeros, such as shortcuts that add channels.

    Those of activations behind them too: a runtime may call a convolution by either.
    """
    graph = onnx.load(str(source)).graph
    weights = {each.name: each for each in graph.initializer}
    found = [
        node.output[0]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in weights and _has_zero_filter(weights[node.input[1]])
    ]
    behind = [node.output[0] for node in graph.node if node.op_type in ("Relu", "Clip") and node.input[0] in found]
    return [*found, *behind]


def _has_zero_filter(weight: onnx.TensorProto) -> bool:
    values = onnx.numpy_helper.to_array(weight)
    return bool((~values.reshape(len(values), -1).any(axis=1)).any())


def _write_inputs(
    images: ImageSet, ports: Ports, metadata: dict[str, str], subject: Subject, folder: Path
) -> dict[str, Path]:
    """Images as the runtime's files take them, portion by portion: a .npy by input name, (portions, *the input's shape).

    They are written one by one, since all of them may be more than fits into memory.
    """
    declared: Any = SimpleNamespace(
        get_inputs=lambda: ports.inputs, get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=metadata)
    )
    runs, network = taking(declared, subject.network), subject.network
    size = (network.portion or 1) if isinstance(network, OnnxNetwork) else int(ports.inputs[0].shape[0])
    arrays: dict[str, Any] = {}
    for number, batch in enumerate(batch for batch, _count in inputs_for(images, runs, size)):
        feed = feed_of(runs, batch)
        given = next(runs.portions(feed)) if isinstance(runs, SampleSession) else feed
        for place, (name, array) in enumerate(given.items()):
            if number == 0:
                shape = (-(-len(images) // size), *array.shape)
                arrays[name] = np.lib.format.open_memmap(folder / f"calibration{place}.npy", "w+", array.dtype, shape)
            arrays[name][number] = array
    for array in arrays.values():
        array.flush()
    return {name: Path(array.filename) for name, array in arrays.items()}
