"""The files that a benchmark program runs on a phone, made and checked on this machine before anything is sent."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrexport.errors import InputError, UsageError
from lrexport.measure.runtimes.base import DEFAULT, Ports
from lrexport.measure.targets.artefacts import prepared
from lrexport.measure.targets.base import MeasuringJob, ModelRefused
from lrexport.measure.targets.local import Local
from lrexport.measure.targets.phone_programs import Program

JsonObject = dict[str, Any]
_OTHERS = "Files for it are yours to convert; runner=ort, ncnn and mnn take .onnx files and runs."


@dataclass(frozen=True)
class PhoneFile:
    """A file for the phone, the shapes of its inputs in the program's order, and the description of what it is fed."""

    path: Path
    shapes: tuple[tuple[int, ...], ...]
    about: JsonObject


def check_job(job: MeasuringJob, program: Program) -> None:
    """Raise UsageError for what the program cannot do, before anything is sent or converted."""
    if job.profile:
        raise UsageError(f"{program.name} cannot measure time per operator", "Omit --profile.")
    if job.values is not None:
        raise UsageError(f"{program.name} makes its own inputs", "Omit --input.")
    for path in job.paths():
        if path.suffix not in program.suffixes:
            raise UsageError(f"{path} is not a file for {program.name}: expected {' or '.join(program.suffixes)}", _OTHERS)
    if job.shapes and ".onnx" not in program.suffixes:
        raise UsageError(f"{program.name} takes the sizes that the file has", "Omit --shape.")


def phone_files(
    job: MeasuringJob, program: Program, python: str | None, folder: Path, target: str
) -> Generator[JsonObject, None, dict[Path, PhoneFile]]:
    """The phone's file for every file of the job; yields progress as the runner's answers.

    Sizes that a file leaves open are fixed. A toolchain's files are run here first, and their outputs compared with ONNX
    Runtime's. Raises ModelRefused and its kinds, DeviceError, InputError.
    """
    if ".onnx" not in program.suffixes:
        return {path: PhoneFile(path, (), {"batch": job.batch or 1, "inputs": {}}) for path in job.paths()}
    runtime = program.converted or DEFAULT
    ready = yield from _prepared(job, runtime, python, folder / "first", target)
    about = {path: ready.artefacts[path].about for path in job.paths()}
    names = {path: name for group in job.groups for name, path in group.items()}
    if not program.takes_any_type:
        for path, facts in about.items():
            _check_floats(facts, program, target, names[path])
    sources = {path: path for path in about}
    if program.sizes_are_in_file and any(facts["has_open_sizes"] for facts in about.values()):
        sources = {path: _fixed(path, facts, folder, target, names[path]) for path, facts in about.items()}
        if program.converted is not None:
            groups = [{name: sources[path] for name, path in group.items()} for group in job.groups]
            ready = yield from _prepared(replace(job, groups=groups, shapes={}), runtime, python, folder / "again", target)
    files = sources
    if program.converted is not None:
        yield from _checked(ready, runtime, python, folder)
        files = {path: ready.artefacts[source].files[0] for path, source in sources.items()}
    return {path: _phone_file(files[path], facts, program) for path, facts in about.items()}


def _prepared(
    job: MeasuringJob, runtime: str, python: str | None, folder: Path, target: str
) -> Generator[JsonObject, None, MeasuringJob]:
    folder.mkdir()
    for step in prepared(job, runtime, python, folder, target):
        if isinstance(step, MeasuringJob):
            return step
        yield step
    raise AssertionError("a prepared job ends with itself")


def _checked(job: MeasuringJob, runtime: str, python: str | None, folder: Path) -> Iterator[JsonObject]:
    """Run the toolchain's files once in the runtime on this machine, which compares their outputs."""
    place = folder / "checked"
    place.mkdir()
    short = replace(
        job, rounds=1, warmup_runs=2, group_seconds=1e-3, least_rounds=1, evict_bytes=0, cold=False, profile=False
    )
    for answer in Local(runtime, python).measured(short, place):
        if "progress" in answer:
            yield {"progress": {"stage": f"comparing {runtime}'s outputs here"}}


def _fixed(path: Path, about: Mapping[str, Any], folder: Path, target: str, name: str) -> Path:
    """The file with all sizes of its inputs fixed. Raises ModelRefused for an .ort file that leaves some open."""
    if not about["has_open_sizes"]:
        return path
    if path.suffix != ".onnx":
        raise ModelRefused(target, name, "it leaves sizes open, and only those of an .onnx file can be fixed")
    import onnx  # slow to import, and rarely needed

    shapes = {port.name: port.shape for port in Ports.from_json(about["ports"]).inputs}
    try:
        model = onnx.load(path)
        for given in model.graph.input:
            for dimension, size in zip(given.type.tensor_type.shape.dim, shapes.get(given.name, ()), strict=False):
                dimension.dim_value = size
        fixed = folder / f"fixed{len(list(folder.glob('fixed*')))}.onnx"
        onnx.save(model, fixed)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot fix the sizes of {path}: {error}") from error
    return fixed


def _check_floats(about: Mapping[str, Any], program: Program, target: str, name: str) -> None:
    for port in Ports.from_json(about["ports"]).inputs:
        if port.dtype != "float32":
            reason = f"{program.name} feeds only float32, but input {port.name!r} is {port.dtype}"
            raise ModelRefused(target, name, f"{reason}; runner=ort takes it")


def _phone_file(path: Path, about: Mapping[str, Any], program: Program) -> PhoneFile:
    ports = Ports.from_json(about["ports"]).inputs
    if path.suffix == ".param":
        ports = [ports[number] for number in _inputs_of_ncnn(path)]
    inputs = {
        port.name: {"shape": list(port.shape), "dtype": port.dtype, "values": program.fed(port.dtype)} for port in ports
    }
    shapes = tuple(tuple(port.shape) for port in ports)
    return PhoneFile(path, shapes, {"batch": about["fed"]["batch"], "inputs": inputs})


def _inputs_of_ncnn(path: Path) -> Sequence[int]:
    """The numbers of the inputs that an ncnn network has, in its order: pnnx leaves out those that nothing uses."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [int(line[1].removeprefix("in")) for line in lines if line[:1] == ["Input"]]
