"""A verified ONNX file → the files of another runtime, compared with it there, and scored.

The runtime computes the same network by other kernels, such as Winograd's, whose rounding errors are larger than those of
torch against ONNX Runtime; so the tolerance is wider, and the comparison is still made output by output, channel by channel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from lrexport.config.runtime_titles import title_of
from lrexport.data.images import ImageSet
from lrexport.errors import InputError
from lrexport.formats.agreement import Array, ComparedOutputs, Terms, check_agreement
from lrexport.formats.file_scores import score_onnx
from lrexport.formats.graph_sessions import feed_of
from lrexport.formats.ort import Platform, write_ort
from lrexport.formats.sample_sessions import SampleSession, like_network
from lrexport.measure.latency import session
from lrexport.measure.runtime_session import RuntimeSession
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import Port, Ports
from lrexport.measure.targets import MeasuringJob
from lrexport.measure.targets.artefacts import SECONDS_TO_CONVERT, prepared
from lrexport.measure.targets.base import LimitReached, ModelRefused
from lrexport.metric import SHARE
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs.scores import Score
from lrexport.signature import Signature
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch, draw_input

_TOLERANCE = 1e-3
_DRAWS = 3
_TIES = 0.001
_LARGER = 2
_ORT = "ONNX Runtime's own format"


@dataclass(frozen=True)
class Subject:
    """What the files are compared and scored by: the network in them and its inputs; test images with their task, or None.

    ``shapes`` are the sizes, with the batch, of inputs that the ONNX file leaves open besides the batch; ``like`` is an
    output of the network for one sample, whose form outputs get.
    """

    network: nn.Module
    signature: Signature
    shapes: Mapping[str, tuple[int, ...]]
    images: ImageSet | None = None
    task: Task | None = None
    like: Any = None


@dataclass(frozen=True)
class InRuntime:
    """Finished files, and their score in the runtime.

    ``relative_error`` is the largest difference from the ONNX file relative to the largest output, ``sizes`` those of the
    first input at which they were compared, ``notes`` what the toolchain leaves in slow kernels, ``ports`` the inputs and
    outputs of the runtime's files; None for ONNX Runtime.
    """

    bytes: int
    relative_error: float | None
    version: str
    precision: str
    sizes: tuple[tuple[int, ...], ...]
    score: Score | None
    notes: tuple[str, ...] = ()
    ports: Ports | None = None


def write_in_ort(source: Path, paths: list[Path], subject: Subject, onnx_score: Score | None) -> InRuntime:
    """Write the ONNX file ``source`` in ONNX Runtime's own format to ``paths``: for x86 and for ARM.

    As :func:`write_in_runtime`, in this process.
    """
    import onnxruntime

    platforms = get_args(Platform)
    made = [
        write_ort(source, path, platform, subject.signature, subject.network)
        for path, platform in zip(paths, platforms, strict=True)
    ]
    written = like_network(session(paths[0], threads=0), subject.network)
    scored = _score(written, paths[0].name, subject, onnx_score, _ORT)
    return InRuntime(
        bytes=sum(each.bytes for each in made),
        relative_error=max(each.relative_error for each in made),
        version=onnxruntime.__version__,
        precision="float32",
        sizes=made[0].sizes,
        score=scored,
    )


def write_in_runtime(
    source: Path, paths: list[Path], runtime: str, python: str | None, subject: Subject, onnx_score: Score | None
) -> InRuntime:
    """Write the files of the ONNX file ``source`` in the runtime's format to ``paths``, in the order of its suffixes.

    They are compared with ``source`` in the runtime, at several sizes if both leave them open, and scored; ``onnx_score`` is
    the score of ``source``. ``python`` has the runtime (None: this one). Raises InputError if the runtime cannot have the
    network, computes something else, or scores differently; then the files are not valid. DeviceError without the runtime.
    """
    title, name = title_of(runtime), source.name
    with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
        job = MeasuringJob(({name: source},), batch=0, shapes=subject.shapes, seconds=SECONDS_TO_CONVERT)
        with refusing(f"{title} cannot have {name}"):
            *_, done = prepared(job, runtime, python, Path(folder), title)
        assert isinstance(done, MeasuringJob)
        artefact = done.artefacts[source]
        for made, path in zip(artefact.files, paths, strict=True):
            path.write_bytes(made.read_bytes())
        ports = Ports.from_json(artefact.about["ports"])
    chosen, notes, total = base.runtime(runtime), tuple(artefact.about["notes"]), sum(path.stat().st_size for path in paths)
    if not chosen.is_run:
        return InRuntime(total, None, artefact.about["version"], chosen.precision, (), None, notes, ports)
    reference = session(source)
    metadata = reference.get_modelmeta().custom_metadata_map
    free_batch = not isinstance(subject.network, OnnxNetwork)
    with RuntimeSession(runtime, python, paths, ports, metadata, free_batch) as mine:
        errors = [_compare(reference, mine, title, name, subject)]
        scored = _score(taking(mine, subject.network), paths[0].name, subject, onnx_score, title)
        version = mine.version
    others = list(_others(reference, ports, runtime))
    for other in others:
        with RuntimeSession(runtime, python, paths, other, metadata) as mine:
            errors.append(_compare(reference, mine, title, name, subject))
    sizes = tuple(tuple(each.inputs[0].shape) for each in (ports, *others))
    return InRuntime(total, max(errors), version, chosen.precision, sizes, scored, notes, ports)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise InputError, ``what`` and the reason, for a network that a runtime's toolchain refuses."""
    try:
        yield
    except ModelRefused as error:
        hint = "It took too long." if isinstance(error, LimitReached) else None
        raise InputError(f"{what}: {error.reason}", hint) from error


def taking(runtime: Any, network: nn.Module) -> Any:
    """A session of a runtime's files, which hold one size, as one that takes the network's inputs."""
    if not isinstance(network, OnnxNetwork):
        return runtime
    return SampleSession(runtime, network.inputs, network.portion or 1)


def _others(reference: Any, ports: Ports, runtime: str) -> Iterator[Ports]:
    """The same inputs at another size along every axis that the ONNX file leaves open, if the runtime's file does too."""
    declared = reference.get_inputs()
    if not base.runtime(runtime).keeps_open_sizes or all(isinstance(size, int) for item in declared for size in item.shape):
        return
    larger = [
        [size if isinstance(known, int) else _LARGER * size for size, known in zip(port.shape, item.shape, strict=True)]
        for port, item in zip(ports.inputs, declared, strict=True)
    ]
    given = [Port(port.name, shape, port.type) for port, shape in zip(ports.inputs, larger, strict=True)]
    try:
        outputs = reference.run(None, _drawn(given, 0))
    except Exception:  # no size that the network accepts; its own one has been compared
        return
    yield Ports(given, [Port(port.name, array.shape, port.type) for port, array in zip(ports.outputs, outputs, strict=True)])


def _drawn(ports: Sequence[Port], seed: int) -> dict[str, Any]:
    """Random inputs, different ones for equal shapes, so that a swap of two is noticed; ones for integers."""
    generator = np.random.default_rng(seed)
    drawn = {
        port.name: generator.standard_normal(port.shape) if port.dtype.startswith("float") else np.ones(port.shape)
        for port in ports
    }
    return {port.name: drawn[port.name].astype(port.dtype) for port in ports}


def _compare(reference: Any, mine: RuntimeSession, title: str, name: str, subject: Subject) -> float:
    """The largest relative difference of the outputs. Raises InputError if it exceeds the tolerance."""
    feeds = dict(_feeds(mine, subject))
    expected, actual = ([_doubles(each.run(None, feed)) for feed in feeds.values()] for each in (reference, mine))
    terms, worst = Terms(f"{name} in {title}", f"{name} in ONNX Runtime", _TOLERANCE), 0.0
    several = len(mine.get_outputs()) > 1
    for number, output in enumerate(mine.get_outputs()):
        pairs = [
            ComparedOutputs(label, one[number], two[number]) for label, one, two in zip(feeds, expected, actual, strict=True)
        ]

        def rounding(number: int = number) -> list[Array]:
            """The largest change of the output by inputs that differ in their last bits."""
            near = ({key: _nudged(array) for key, array in feed.items()} for feed in feeds.values())
            moved = [_doubles(reference.run(None, feed)) for feed in near]
            return [np.abs(one[number] - two[number]) for one, two in zip(moved, expected, strict=True)]

        worst = max(worst, check_agreement(pairs, rounding, terms, output.name if several else "").relative_error)
    return worst


def _doubles(outputs: list[Any]) -> list[Array]:
    return [np.asarray(output).astype(np.float64) for output in outputs]


def _nudged(array: Any) -> Any:
    return np.nextafter(array, np.inf, dtype=array.dtype) if array.dtype.kind == "f" else array


def _feeds(mine: RuntimeSession, subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Random inputs, and real ones where there are images, at the sizes of the session."""
    declared = mine.ports.inputs
    own = {spec.name: spec for spec in subject.signature}
    same = not isinstance(subject.network, OnnxNetwork) and all(
        tuple(port.shape[1:]) == own[port.name].shape for port in declared if port.name in own
    )
    batch = declared[0].shape[0] if declared[0].shape else 1
    for number in range(_DRAWS):
        if same:
            generator = torch.Generator().manual_seed(number)
            drawn = tuple(draw_input(spec, batch, torch.empty(0), generator) for spec in subject.signature)
            yield f"random input {number + 1}", feed_of(mine, Batch(drawn, subject.signature.names))
        else:
            yield f"random input {number + 1}", _drawn(declared, number)
    if subject.images is not None and same:
        for samples, _ in subject.images.batches(8, torch.device("cpu")):
            for start in range(0, len(samples), batch):
                yield f"real input {start + 1}", feed_of(mine, samples[start : start + batch].filled(batch))
            return


def _score(mine: Any, name: str, subject: Subject, onnx_score: Score | None, title: str) -> Score | None:
    """The task's metrics in a session that takes the network's inputs. Raises InputError if they are not the ONNX file's."""
    if subject.images is None or subject.task is None:
        return None
    score = score_onnx(Path(name), subject.images, "test", subject.task, subject.like, None, runtime=mine)
    if onnx_score is None or onnx_score.n != score.n:
        return score
    for (metric, expected), (_, mine_value) in zip(onnx_score.metrics_of, score.metrics_of, strict=True):
        allowed = max(_TIES, 1.5 / score.n) if metric.unit == SHARE else _TIES * max(1.0, abs(expected))
        if abs(expected - mine_value) > allowed:
            raise InputError(
                f"{name} scores {mine_value:.4f} in {title}, {expected:.4f} in ONNX Runtime on the same "
                f"{score.n} images ({metric.name})",
                "The files are not the exported network. No files were written.",
            )
    return score
