"""A network in any runtime, used like a session of ONNX Runtime; the runtime is in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from lrexport.errors import DeviceError, InputError
from lrexport.measure.runtimes.base import Port, Ports
from lrexport.measure.targets.artefacts import started, surroundings
from lrexport.measure.targets.base import Flood, Silent, Tail, last_line, lines_of, modules, stop, write_all

_SECONDS = 300.0
_SECONDS_TO_START = 120
_LINE_BYTES = 1_000_000
_MOST_WORDS = 1_000


class RuntimeSession:
    """A runtime's files, loaded with the sizes of ``ports`` under ``python`` (None: this one). A context manager.

    ``metadata`` is that of the ONNX file. With ``free_batch`` it takes any number of samples, which run in portions of the
    batch. Raises InputError if the runtime cannot load or run them, DeviceError if its Python cannot be run.
    """

    def __init__(
        self,
        runtime: str,
        python: str | None,
        files: Sequence[Path],
        ports: Ports,
        metadata: Mapping[str, str],
        free_batch: bool = False,
    ) -> None:
        self.ports, self._title = ports, runtime
        self._portion = ports.inputs[0].shape[0] if free_batch else None
        self._metadata = dict(metadata)
        self._folder = tempfile.TemporaryDirectory(prefix="lrexport-")
        folder = Path(self._folder.name)
        write_all(folder, modules())
        job = {
            "runtime": runtime,
            "files": [str(file.resolve()) for file in files],
            "ports": ports.to_json(),
            "threads": 0,
            "seconds": _SECONDS,
        }
        (folder / "serve.json").write_text(json.dumps(job), encoding="utf-8")
        command = [python or sys.executable, "-m", "lrexport.measure.serving", "serve.json", str(os.getpid())]
        streams = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            self._process = started(command, runtime, **streams, cwd=folder, env=surroundings(folder, python))
        except DeviceError:
            self._folder.cleanup()
            raise
        assert self._process.stderr is not None
        self._messages = Tail(self._process.stderr)
        self._lines = lines_of(self._process, _LINE_BYTES, _SECONDS + _SECONDS_TO_START)

    def __enter__(self) -> RuntimeSession:
        try:
            self.version = str(self._answer()["ready"])
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def get_inputs(self) -> list[Port]:
        if self._portion is None:
            return self.ports.inputs
        return [Port(port.name, ["batch", *port.shape[1:]], port.type) for port in self.ports.inputs]

    def get_outputs(self) -> list[Port]:
        return self.ports.outputs

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self._metadata)

    def run(self, names: Sequence[str] | None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """All outputs for one feed of the declared sizes. A part of a portion is filled with its last sample."""
        count = len(next(iter(feed.values()))) if self._portion else 0
        if self._portion and count % self._portion:
            missing = -count % self._portion
            feed = {name: np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for name, array in feed.items()}
        folder = Path(self._folder.name)
        given, made = folder / "in.npz", folder / "out.npz"
        inputs: dict[str, Any] = {f"in{number}": feed[port.name] for number, port in enumerate(self.ports.inputs)}
        np.savez(given, **inputs)
        asked = {"in": str(given), "out": str(made), "portion": self._portion}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended: the answer says why
            pass
        self._answer()
        with np.load(made, allow_pickle=False) as outputs:
            arrays = [outputs[f"out{number}"] for number in range(len(self.ports.outputs))]
        return [array[:count] for array in arrays] if count else arrays

    def _answer(self) -> dict[str, Any]:
        try:
            line = next(self._lines, None)
        except (Silent, Flood) as error:
            raise DeviceError(f"{self._title} gave {error.message}") from error
        if line is None:
            status = self._process.wait()
            words = last_line(self._messages.text())
            ended = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise InputError(f"{self._title} ended with {ended}{f': {words}' if words else ''}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise DeviceError(f"{self._title} gave an answer that is not lrexport's") from error
        if "error" in answer:
            raise InputError(f"{self._title} cannot run its file: {str(answer['error'])[:_MOST_WORDS]}")
        return answer

    def _close(self) -> None:
        _exhaust(self._lines)
        if self._process.stdin is not None:
            self._process.stdin.close()
        stop(self._process)
        self._folder.cleanup()


def _exhaust(lines: Iterator[str]) -> None:
    close = getattr(lines, "close", None)
    if close is not None:
        close()
