"""An Android phone over adb, measured with the benchmark program of the runtime that ships.

Many short runs of the program, the files' in shuffled order round by round: each is one sample. Everything on the phone is
in one folder, which is removed when the job ends or fails, and by the phone's own shell if this side is gone.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.artifacts.plain_files import open_input
from lrexport.errors import DeviceError, UsageError
from lrexport.measure.targets.adb_client import connect
from lrexport.measure.targets.adb_folder import DeviceFolder, Invocation
from lrexport.measure.targets.base import LimitReached, MeasuringJob, ModelRefused
from lrexport.measure.targets.elf import check_machine
from lrexport.measure.targets.phone_facts import PhoneFacts, chosen_cores, listed, mask, ranges, read_facts
from lrexport.measure.targets.phone_files import PhoneFile, check_job, phone_files
from lrexport.measure.targets.phone_programs import PROGRAMS, Program, Timing, Unreadable
from lrexport.measure.targets.queries import options_of
from lrexport.text import nearest

SYNTAX = "adb://[SERIAL]?runner=NAME&program=PATH[&libraries=FOLDER][&cores=big|little|all|0-3][&python=PATH]"
# No serial has anything that a shell or a URL could read as more than a name.
_URL = re.compile(r"adb://(?P<serial>\w[\w.:-]*)?\?(?P<query>.+)", re.ASCII)
_WORDS = ("big", "little", "all")
_FIRST_RUNS, _MOST_RUNS = 5, 200
_INVOCATION_MS = 200.0  # of timed runs
_COARSE = 0.05  # of a latency: the largest last digit of a program's output
_FINE_MS = 1e-3  # layers take tens of microseconds
_SECONDS_BETWEEN_PROGRESS = 1.0
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Adb:
    """A phone: its ``serial`` (None: the only one), the runner and its program on this machine, and what it needs.

    ``libraries`` is a folder with shared libraries for the program, ``cores`` the words for cores (None: big, if the phone
    can), ``python`` the Python here that has the runtime's toolchain (None: this one).
    """

    runner: str
    path: Path
    serial: str | None = None
    libraries: Path | None = None
    cores: str | None = None
    python: str | None = None

    @property
    def name(self) -> str:
        cores = f"&cores={self.cores}" if self.cores else ""
        return f"adb://{self.serial or ''}?runner={self.runner}{cores}"

    @property
    def runtime(self) -> str:
        return self._program.name

    @property
    def _program(self) -> Program:
        return PROGRAMS[self.runner]

    def check_layers(self) -> None:
        """Raise UsageError unless files of single layers run there, or are converted, and the program's digits suffice."""
        program = self._program
        if ".onnx" not in program.suffixes:
            raise UsageError(
                f"{self.name} cannot time layers: ONNX files of single layers are not converted for {program.name}",
                "Choose ranks with runner=ort or mnn, or for another target; then measure the result with lrexport bench.",
            )
        if program.resolution_ms > _FINE_MS:
            raise UsageError(
                f"{self.name} cannot time layers: {program.name} prints hundredths of a millisecond",
                "Choose ranks with --target 'local?runtime=ncnn', or on a board with 'ssh://…?runtime=ncnn'; then measure "
                "the result with lrexport bench.",
            )

    def environment(self) -> dict[str, Any]:
        return next(answer["environment"] for answer in self.run(MeasuringJob(())) if "environment" in answer)

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        check_job(job, self._program)
        digest = self._digest()
        phone = connect(self.serial)
        facts = read_facts(phone.shell)
        check_machine(self.path, facts.abi)
        cores, pinned = self._pinned(facts, job.threads)
        about = {
            "runtime": self._program.runtime,
            "runtime_version": f"{self._program.name} {digest[:12]}",
            "precision": self._program.precision,
            "program_sha256": digest,
        }
        yield {"environment": facts.environment(cores, pinned) | about}
        if job.groups:
            with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
                files = yield from phone_files(job, self._program, self.python, Path(name), self.name)
                with DeviceFolder(phone) as folder:
                    folder.check_room(self._bytes(files), facts.free)
                    folder.send_program(self.path, self.libraries)
                    measuring = _Measuring(self, self._program, job, folder, cores)
                    for index, group in enumerate(job.groups):
                        models = {name: files[path] for name, path in group.items()}
                        yield from measuring.group(index, models)
        yield {"done": read_facts(phone.shell).environment(cores, pinned) | about}

    def _digest(self) -> str:
        try:
            with open_input(self.path) as file:
                return hashlib.sha256(file.read()).hexdigest()
        except OSError as error:
            raise UsageError(
                f"cannot read the program {self.path}: {error.strerror}", f"Expected {SYNTAX}, with the path of a file here."
            ) from error

    def _bytes(self, files: Mapping[Path, PhoneFile]) -> int:
        """Of everything that is sent."""
        libraries = sorted(self.libraries.glob("*.so*")) if self.libraries else []
        return sum(path.stat().st_size for path in (self.path, *libraries, *(file.path for file in files.values())))

    def _pinned(self, facts: PhoneFacts, threads: int) -> tuple[tuple[int, ...], str | None]:
        """The numbers of the cores to use, and their words for the record; none if nothing can be pinned."""
        words = self.cores or "big"
        chosen = chosen_cores(facts.cores, words, threads)
        if self._program.own_cores:
            return chosen, f"{words}, by {self._program.name}"
        if facts.has_taskset and chosen:
            return chosen, f"{ranges(chosen)} ({words})" if words in _WORDS else ranges(chosen)
        if self.cores is not None:
            reason = "the device has no taskset" if chosen else "the device does not tell its cores' clocks"
            raise DeviceError(f"{self.name} cannot choose cores: {reason}", "Omit cores=…: the system then chooses them.")
        return (), None


class _Measuring:
    """The protocol of one job on one phone."""

    def __init__(
        self, target: Adb, program: Program, job: MeasuringJob, folder: DeviceFolder, cores: tuple[int, ...]
    ) -> None:
        self._target, self._program, self._job, self._folder, self._cores = target, program, job, folder, cores
        self._told = time.monotonic()

    def group(self, index: int, models: Mapping[str, PhoneFile]) -> Iterator[JsonObject]:
        """Send the models, time them round by round, and remove them."""
        job = self._job
        places = {name: f"{place}/model{file.path.suffix}" for place, (name, file) in enumerate(models.items())}
        for name, place in places.items():
            yield from self._due(index, stage="sending", model=name)
            self._folder.send(models[name].path, place)
        first: dict[str, Timing] = {}
        for name, place in places.items():
            yield from self._due(index, stage="warming up", model=name)
            first[name] = self._timed(name, place, models[name], _FIRST_RUNS, 0.0)
        runs = {name: _runs(timing) for name, timing in first.items()}
        rounds = job.least_rounds if job.group_seconds else job.rounds
        samples: dict[str, list[float]] = {name: [] for name in models}
        order, shuffler, told = list(models), random.Random(job.seed), 0
        for done in range(1, rounds + 1):
            shuffler.shuffle(order)
            for name in order:
                timing = self._timed(name, places[name], models[name], runs[name], first[name].ms)
                samples[name].append(timing.ms)
            if time.monotonic() - self._told >= _SECONDS_BETWEEN_PROGRESS:
                news = {name: values[told:] for name, values in samples.items()}
                yield from self._due(index, stage="measuring", done=done, of=rounds, samples_ms=news)
                told = done
        self._folder.remove(places.values())
        figures = {name: self._figures(models[name], samples[name], runs[name], first[name]) for name in models}
        yield {"group": index, "models": figures}

    def _figures(self, file: PhoneFile, samples: list[float], runs: int, first: Timing) -> JsonObject:
        costs = {"load_ms": first.load_ms, "first_run_ms": first.first_run_ms} if self._job.cold else {}
        return {
            "samples_ms": samples,
            "repeats": runs,
            **file.about,
            **{name: value for name, value in costs.items() if value is not None},
        }

    def _due(self, index: int, **facts: Any) -> Iterator[JsonObject]:
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_PROGRESS:
            self._told = time.monotonic()
            yield {"progress": {"group": index, **facts}}

    def _timed(self, name: str, place: str, file: PhoneFile, runs: int, expected_ms: float) -> Timing:
        """One invocation. Raises ModelRefused and its kinds, DeviceError."""
        program, job = self._program, self._job
        threads = job.threads or len(self._cores)
        powersave = {"all": 0, "little": 1}.get(self._target.cores or "big", 2)
        arguments = program.arguments(place, runs, threads, file.shapes, powersave)
        pinning = [] if program.own_cores or not self._cores else ["taskset", mask(self._cores)]
        seconds = job.seconds + 10 * runs * expected_ms / 1e3
        ended = self._folder.invoke(Invocation(pinning, arguments, program.results, program.log_tag), seconds)
        if ended is None:
            raise LimitReached(self._target.name, name, f"one invocation of {program.name} takes more than {seconds:g} s")
        if ended.refusal is not None:
            raise DeviceError(f"{self._target.name} cannot run {program.name}: {ended.refusal}", ended.hint)
        if ended.failure is not None:
            raise ModelRefused(self._target.name, name, f"{program.name} {ended.failure}")
        try:
            timing = program.parse(ended.output, runs, place)
        except Unreadable as error:
            message = f"{self._target.name}: the output of {program.name} cannot be read: {error}"
            raise DeviceError(message, "Another version or another program may have that name.") from error
        if program.resolution_ms > _COARSE * timing.ms:
            digits = f"{program.name} prints steps of {program.resolution_ms:g} ms"
            raise ModelRefused(self._target.name, name, f"{digits}: too coarse for a latency of {timing.ms:g} ms")
        return timing


def _runs(timing: Timing) -> int:
    """Runs of an invocation, after its first one."""
    return min(_MOST_RUNS, max(_FIRST_RUNS, math.ceil(_INVOCATION_MS / timing.ms)))


def parse_adb(text: str) -> Adb:
    """``adb://SERIAL?runner=ncnn&program=build-android/benchmark/benchncnn``. Raises UsageError."""
    match = _URL.fullmatch(text)
    if match is None:
        raise UsageError(
            f"invalid adb target {text!r}: expected {SYNTAX}", "A serial may contain letters, digits and . _ : -"
        )
    options = options_of(text, match["query"], ("runner", "program", "libraries", "cores", "python"), SYNTAX)
    for name in ("runner", "program"):
        if name not in options:
            raise UsageError(f"invalid adb target {text!r}: {name}= is missing", f"Expected {SYNTAX}.")
    for name, value in options.items():
        if not value or "\0" in value:
            raise UsageError(f"invalid adb target {text!r}: {name}= without a value", f"Expected {SYNTAX}.")
    runner = options["runner"]
    if runner not in PROGRAMS:
        near = nearest(runner, PROGRAMS)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"invalid adb target {text!r}: unknown runner {runner!r}", f"{hint}Known: {', '.join(PROGRAMS)}.")
    cores = options.get("cores")
    if cores is not None:
        _check_cores(text, cores, PROGRAMS[runner])
    libraries = Path(options["libraries"]) if "libraries" in options else None
    return Adb(runner, Path(options["program"]), match["serial"], libraries, cores, options.get("python"))


def _check_cores(text: str, cores: str, program: Program) -> None:
    if program.own_cores and cores not in program.own_cores:
        raise UsageError(
            f"invalid adb target {text!r}: {program.name} chooses its cores itself, so {cores!r} would have no effect",
            f"Expected cores={' or '.join(program.own_cores)}.",
        )
    if cores not in _WORDS:
        try:
            listed(cores)
        except ValueError as error:
            raise UsageError(
                f"invalid adb target {text!r}: {cores!r} are not cores",
                f"Expected {', '.join(_WORDS)}, or numbers such as 4-7.",
            ) from error
