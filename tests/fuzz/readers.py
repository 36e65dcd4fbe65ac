"""Every reader of lrexport's, as a function of an input's bytes, with what mutations begin with."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lrexport.artifacts import arrays, onnx_child, tensors
from lrexport.artifacts.plan_file import read_plan
from lrexport.artifacts.run_files import SPECTRA
from lrexport.artifacts.toml_files import LREXPORT, PYPROJECT, read_settings
from lrexport.budget.limits import read_budgets
from lrexport.check.run_check import CheckOptions, check_settings
from lrexport.cli import configuration
from lrexport.cli import main as commands
from lrexport.data.reading import read_image
from lrexport.errors import DeviceError, InputError
from lrexport.measure.latency import Interrupted, measure
from lrexport.measure.macs import onnx_survey
from lrexport.measure.targets.answers import answers
from lrexport.measure.targets.base import MeasuringJob
from lrexport.report import cards
from lrexport.report.json_report import runs_to_json
from lrexport.report.latency_tables import latency_table
from lrexport.report.plan_tables import plan_table, plan_to_json
from lrexport.report.repeat_commands import commands as repeating
from lrexport.report.reported_run import read_subject
from lrexport.report.sweep_tables import front_table
from lrexport.report.tables import results_table
from lrexport.runs.figures import Latency
from lrexport.runs.record import load_record
from lrexport.runs.sweep_record import load_sweep
from tests.fuzz import mutate, seeds
from tests.fuzz.harness import Reader
from tests.report.runs import write_run

# What a fault of ours raises; what onnx or numpy raise about damage is another matter.
_FAULTS = (LookupError, AttributeError, TypeError, ArithmeticError, AssertionError, RecursionError, NameError)


def _onnx(content: bytes, folder: Path) -> None:
    """As the child process does it, whose limits are the harness's here."""
    (folder / "model.onnx").write_bytes(content)
    (folder / "weights.bin").write_bytes(bytes(16))
    here, arguments = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = ["", "model.onnx", "0:0", '{"shapes": {}}']
    try:
        onnx_child.examine("model.onnx", onnx_survey._look)
    except _FAULTS as error:
        frames = _frames(error)
        if any("/lrexport/" in frame for frame in frames[-1:]):
            raise
        raise InputError(f"invalid: {error}"[:300]) from error
    except MemoryError as error:
        raise InputError("too much memory") from error
    except Exception as error:
        raise InputError(f"invalid: {error}"[:300]) from error
    finally:
        os.chdir(here)
        sys.argv = arguments


def _frames(error: BaseException) -> list[str]:
    trace, names = error.__traceback__, []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return names


def _weights(content: bytes, folder: Path) -> None:
    (folder / "weights.pt").write_bytes(content)
    tensors.load(folder / "weights.pt")


@cache
def _sound_run() -> Path:
    """A finished run, which every process copies."""
    run = Path(tempfile.mkdtemp(prefix="lrexport-fuzz-")) / "run"
    atexit.register(shutil.rmtree, run.parent, ignore_errors=True)
    write_run(run)
    return run


def _run(part: str) -> Callable[[bytes, Path], None]:
    """A whole run with one file of it changed: what inspect and report show of it."""

    def read(content: bytes, folder: Path) -> None:
        run = folder / "run"
        shutil.copytree(_sound_run(), run)
        (run / part).write_bytes(content)
        if part == SPECTRA:  # a changed file alone is refused by its hash
            record = load_record(_sound_run())
            record = record.sealed(run, SPECTRA)
            record.save(run)
        record = load_record(run)
        results_table(record), plan_table(record.plan), repeating(record, "run")
        subject = read_subject(run)
        runs_to_json([subject]), cards.render([subject])

    return read


def _plan(content: bytes, folder: Path) -> None:
    (folder / "plan.json").write_bytes(content)
    plan = read_plan(folder / "plan.json")
    plan_table(plan.entries, plan.as_written), plan_to_json(plan)


def _settings(name: str) -> Callable[[bytes, Path], None]:
    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        settings = read_settings(str(folder / name))
        read_budgets(settings)
        configuration.defaults(str(folder / name), lambda: _commands())

    return read


def _commands() -> dict[str, Any]:
    import click

    context = click.Context(commands.cli)
    return {name: command for name in commands.COMMANDS if (command := commands.cli.get_command(context, name))}


def _recipe(content: bytes, folder: Path) -> None:
    (folder / "recipe.toml").write_bytes(content)
    known = _commands()
    others = [command for name, command in known.items() if name == "train"]
    configuration.recipe_defaults(read_settings(str(folder / "recipe.toml")), known["compress"], others)


def _check(**choice: Any) -> Callable[[bytes, Path], None]:
    """A check of a model whose baseline, or measured latency, is the input."""

    def read(content: bytes, folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"weights")
        (folder / "given.json").write_bytes(content)
        text = '[budget]\npath = "model.bin"\nmax_bytes = "1 KB"\n'
        (folder / "lrexport.toml").write_text(text, encoding="utf-8")
        chosen = {name: (folder / "given.json",) if name == "latencies" else folder / "given.json" for name in choice}
        check_settings((), read_settings(str(folder / "lrexport.toml")), CheckOptions(**chosen))

    return read


def _sweep(content: bytes, folder: Path) -> None:
    (folder / "sweep.json").write_bytes(content)
    sweep = load_sweep(folder)
    front_table(sweep), sweep.runs(folder), sweep.runs(folder, sweep.on_front()), sweep.model_dump(mode="json")


def _arrays(content: bytes, folder: Path) -> None:
    (folder / "inputs.npz").write_bytes(content)
    arrays.read_arrays(folder / "inputs.npz")


def _image(content: bytes, folder: Path) -> None:
    (folder / "picture.png").write_bytes(content)
    image = read_image(folder / "picture.png")
    assert image.mode == "RGB"


@dataclass(frozen=True)
class _Answering:
    """A device that says what it is told to say, then ends."""

    lines: list[str]
    name: str = "ssh://device"

    def environment(self) -> dict[str, Any]:
        return {}

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        yield from answers(iter(self.lines), job, self.name, lambda: DeviceError("it ended"))


def _answers(content: bytes, folder: Path) -> None:
    target = _Answering([f"{line}\n" for line in content.decode(errors="replace").split("\n")])
    paths = {"a": folder / "a.onnx", "b": folder / "b.onnx"}
    try:
        measurement = measure(paths, "a", MeasuringJob((), rounds=50), target)
    except Interrupted as error:
        measurement = error.measurement
    latency_table(measurement.latencies, {}, "a", target.name, measurement.environment)
    for latency in measurement.latencies.values():
        Latency.model_validate(latency.model_dump())


READERS = {
    reader.name: reader
    for reader in (
        Reader("onnx", _onnx, seeds.graphs, mutate.of_onnx),
        Reader("safetensors", _weights, seeds.safetensors, mutate.of_safetensors),
        Reader("pt", _weights, seeds.checkpoints, mutate.of_zip(mutate.of_pickle)),
        Reader("old-pt", _weights, seeds.old_checkpoints, mutate.of_pickle),
        Reader("run.json", _run("run.json"), seeds.records, mutate.of_json),
        Reader("spectra.json", _run("spectra.json"), seeds.spectra, mutate.of_json),
        Reader("log.jsonl", _run("log.jsonl"), seeds.logs, mutate.of_json_lines),
        Reader("plan", _plan, seeds.plans, mutate.of_json),
        Reader("pyproject", _settings(PYPROJECT), seeds.settings, mutate.of_text),
        Reader("settings", _settings(LREXPORT), seeds.own_settings, mutate.of_text),
        Reader("recipe", _recipe, seeds.recipes, mutate.of_text),
        Reader("baseline", _check(baseline=True), seeds.baselines, mutate.of_json),
        Reader("latencies", _check(latencies=True), seeds.latencies, mutate.of_json),
        Reader("sweep", _sweep, seeds.sweeps, mutate.of_json),
        Reader("npz", _arrays, seeds.arrays, mutate.of_zip(mutate.of_bytes)),
        Reader("image", _image, seeds.images, mutate.of_bytes),
        Reader("answers", _answers, seeds.answers, mutate.of_json_lines),
    )
}
