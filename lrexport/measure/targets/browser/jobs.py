"""A measuring job as the page gets it, and the comparison of the outputs that it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrexport.measure.runtimes.base import Ports
from lrexport.measure.runtimes.compare import OutputsDiffer, check_outputs
from lrexport.measure.targets.base import Artefact, MeasuringJob, ModelRefused
from lrexport.measure.targets.browser import programs
from lrexport.measure.targets.browser.desk import Job, Outputs, Subject

JsonObject = dict[str, Any]
_LOADED_BYTES_A_SECOND = 50_000_000
# A network of one Identity.
_SMALLEST = "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
_SAME = (
    *("rounds", "threads", "seed", "sample_ms", "warmup_runs", "group_seconds", "least_rounds"),
    *("evict_bytes", "cold", "seconds", "memory"),
)


def asked(job: MeasuringJob, target: str, provider: str, timer_ms: float) -> Job:
    """The job for the page, and the networks that it gets."""
    paths = job.paths()
    numbers = {path: number for number, path in enumerate(paths)}
    names = {path: name for group in job.groups for name, path in group.items()}
    groups = [[_model(name, path, numbers, job) for name, path in group.items()] for group in job.groups]
    options = {
        **{name: getattr(job, name) for name in _SAME},
        "groups": groups,
        "provider": provider,
        "script": programs.script(provider),
        "timer_ms": timer_ms,
        "smallest": _SMALLEST,
    }
    return Job(options, [_subject(path, job.artefacts[path], names[path], target) for path in paths])


def _model(name: str, path: Path, numbers: Mapping[Path, int], job: MeasuringJob) -> JsonObject:
    ports = Ports.from_json(job.artefacts[path].about["ports"])
    inputs = [{"name": port.name, "dtype": port.dtype, "shape": port.shape} for port in ports.inputs]
    seconds = job.seconds + path.stat().st_size / _LOADED_BYTES_A_SECOND
    return {"name": name, "number": numbers[path], "inputs": inputs, "seconds": seconds}


def _subject(path: Path, artefact: Artefact, name: str, target: str) -> Subject:
    ports = Ports.from_json(artefact.about["ports"])
    with np.load(artefact.arrays, allow_pickle=False) as arrays:
        inputs = b"".join(arrays[f"in{number}"].tobytes() for number in range(len(ports.inputs)))
        most = sum(arrays[f"out{number}"].nbytes for number in range(len(ports.outputs)))
    return Subject(path, inputs, most, _comparison(artefact, ports, name, target))


def _comparison(artefact: Artefact, ports: Ports, name: str, target: str) -> Callable[[Outputs], None]:
    def check(outputs: Outputs) -> None:
        """Raises ModelRefused for outputs that are not ONNX Runtime's."""
        with np.load(artefact.arrays, allow_pickle=False) as arrays:
            expected = {port.name: arrays[f"out{number}"] for number, port in enumerate(ports.outputs)}
        try:
            actual = {given: _array(*output) for given, output in outputs.items()}
            check_outputs(expected, actual, artefact.about["tolerance"])
        except (OutputsDiffer, ValueError, TypeError) as error:
            raise ModelRefused(target, name, str(error)) from error

    return check


def _array(kind: str, shape: list[int], content: bytes) -> Any:
    return np.frombuffer(content, np.dtype(kind)).reshape(shape)


def with_inputs(post: JsonObject, job: MeasuringJob) -> JsonObject:
    """A post with what the page cannot know: the batch and the inputs of each network."""
    group, models = post.get("group"), post.get("models")
    if not (isinstance(group, int) and 0 <= group < len(job.groups) and isinstance(models, dict)):
        return post
    fed = {name: job.artefacts[path].about["fed"] for name, path in job.groups[group].items()}
    known = {name: {**figures, **fed.get(name, {})} for name, figures in models.items() if isinstance(figures, dict)}
    return {**post, "models": known}
