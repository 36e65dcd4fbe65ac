"""Makes a runtime's files from ONNX files, and what they must compute. Self-contained, as the runner.

    python -m lrexport.measure.preparing JOB.json [PARENT]

Stages, each a job in a process, because the toolchain's Python may have no ONNX Runtime: ``needs`` says at once which
package is missing there; ``reference`` runs each file in ONNX Runtime on inputs by the rules of the runner, and writes
both into a .npz; ``program``, for toolchains that convert from torch, writes it as a program of torch.export, and needs
lrexport; ``convert`` makes the runtime's files; ``quantise`` makes its int8 files from these. Every answer is a line of
JSON: {"model": key, "facts": …} for each file as soon as it is done, or {"error": …, "model": key}.
"""

# The toolchain's Python may be older than lrexport requires.
from __future__ import annotations

import json
import os
import sys

from lrexport.confinement import die_with_parent
from lrexport.measure.inputs import Inputs, InputsError
from lrexport.measure.runner import ModelError, inputs_of
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import JsonObject, Port, Ports
from lrexport.measure.runtimes.compare import INT8_TOLERANCE, TOLERANCE
from lrexport.measure.runtimes.onnxruntime import session
from lrexport.measure.watch import Watch, confine_to

_IN_INT8 = b"DequantizeLinear"
_TEXT = "tensor(string)"
_STAGES = {"reference": "loading and the first run", "quantise": "quantising"}


def main(path: str) -> int:
    """Run the job in ``path``. Returns the exit status."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    os.chdir(os.path.dirname(os.path.abspath(path)))
    runtime = base.runtime(job["runtime"] if job["stage"] in ("needs", "convert", "quantise") else base.DEFAULT)
    absent = _not_installed(runtime, job["int8"]) if job["stage"] == "needs" else base.missing(runtime.needs)
    if absent is not None:
        _say({"error": f"{sys.executable} has no usable {absent[0]} ({absent[1]})", "missing": absent[0]})
        return 1
    confine_to(
        job["memory"], [file for model in job["models"] for file in (model["file"], *model.get("inputs", {}).values())]
    )
    watch = Watch(job["seconds"], lambda model, reason: _say({"error": reason, "model": model, "limit": "time"}))
    inputs = inputs_of(job)
    for model in job["models"]:
        _say({"begun": model["key"]})
        watch.begin(model["key"], _STAGES.get(job["stage"], "converting"), times=2)
        try:
            if job["stage"] == "reference":
                facts = _reference(model, job, inputs)
            elif job["stage"] == "quantise":
                facts = _quantised(model, runtime)
            else:
                facts = _program(model) if job["stage"] == "program" else _converted(model, job, runtime)
        except TimeoutError as error:
            _say(ModelError(model["key"], str(error), limit="time").facts())
            return 1
        except Exception as error:  # toolchains raise anything
            _say(ModelError(model["key"], error).facts())
            return 1
        watch.end()
        _say({"model": model["key"], "facts": facts})
    if job["stage"] == "reference" and (unused := inputs.unused()):
        _say(ModelError("", InputsError(f"no file has an input named {', '.join(map(repr, unused))}")).facts())
        return 1
    return 0


def _not_installed(runtime: base.Runtime, int8: bool) -> tuple[str, str] | None:
    """A package of the runtime or its toolchain that is not installed; not imported, since it may load torch."""
    import importlib.util

    for module, package in {**runtime.needs, **runtime.converter, **(runtime.quantiser if int8 else {})}.items():
        top = module.split(".")[0]
        if importlib.util.find_spec(top) is None:
            return package, f"No module named {top!r}"
    return None


def _reference(model: JsonObject, job: JsonObject, inputs: Inputs) -> JsonObject:
    """Inputs and ONNX Runtime's outputs, written into the model's .npz; their names, shapes and types."""
    import numpy

    network = session(model["file"], job["threads"])
    feed, about, batch = inputs.feed(network.get_inputs())
    outputs = network.run(None, feed)
    given = [Port(item.name, feed[item.name].shape, item.type) for item in network.get_inputs()]
    declared = [item for item in given if item.type == _TEXT]
    if declared:
        raise ValueError(f"input {declared[0].name!r} is text, which only ONNX Runtime takes")
    made = [Port(item.name, array.shape, item.type) for item, array in zip(network.get_outputs(), outputs)]
    arrays = {f"in{number}": feed[port.name] for number, port in enumerate(given)}
    numpy.savez(model["arrays"], **arrays, **{f"out{number}": array for number, array in enumerate(outputs)})
    return {
        "fed": {"batch": batch, "inputs": about},
        "ports": Ports(given, made).to_json(),
        "has_open_sizes": any(not isinstance(size, int) for item in network.get_inputs() for size in item.shape),
        "tolerance": INT8_TOLERANCE if _is_quantised(model["file"]) else TOLERANCE,
    }


def _is_quantised(path: str) -> bool:
    with open(path, "rb") as file:
        return _IN_INT8 in file.read()


def _program(model: JsonObject) -> JsonObject:
    """The model as a program, for inputs like those in its .npz."""
    from pathlib import Path

    import numpy
    import torch

    from lrexport.onnx_network.program import write_program

    path, names = f"{model['folder']}.pt2", [port.name for port in Ports.from_json(model["ports"]).inputs]
    with numpy.load(model["arrays"], allow_pickle=False) as arrays:
        inputs = {name: torch.from_numpy(arrays[f"in{number}"]) for number, name in enumerate(names)}
    write_program(Path(model["file"]), Path(path), inputs)
    return {"program": path}


def _converted(model: JsonObject, job: JsonObject, runtime: base.Runtime) -> JsonObject:
    os.makedirs(model["folder"])
    source = model["program"] if runtime.takes_program else model["file"]
    files = runtime.convert(source, model["folder"], Ports.from_json(model["ports"]), job["seconds"])
    return {"files": [os.path.abspath(file) for file in files], "notes": runtime.notes, "version": runtime.version()}


def _quantised(model: JsonObject, runtime: base.Runtime) -> JsonObject:
    os.makedirs(model["folder"])
    made = runtime.quantise(model["files"], model["folder"], base.Calibration(model["inputs"], model["zero"]))
    return {"files": [os.path.abspath(file) for file in made], "notes": runtime.notes, "tool": runtime.quantised_by()}


class _Answers:
    """Where answers go: the first stdout. Whatever toolchains print goes to stderr."""

    descriptor = 1

    @classmethod
    def keep(cls) -> None:
        cls.descriptor = os.dup(1)
        os.dup2(2, 1)


def _say(value: JsonObject) -> None:
    os.write(_Answers.descriptor, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[-1]) if sys.argv[-1].isdigit() else None)
    _Answers.keep()
    sys.exit(main(sys.argv[1]))
