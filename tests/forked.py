"""lrexport's commands in processes that begin with torch imported: dozens of real processes in seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

_PRELOADED = "tests.preloaded"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([_PRELOADED])


class Forked:
    """``lrexport ARGUMENTS`` in ``folder``, on one thread; stdout and stderr go to one file, or ``separately`` to one each.

    With ``die_at`` (name, n) it is killed at the n-th call of that function of ``os``, or of those with | between, before it
    takes effect.
    ``environment`` is added to this process's.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        die_at: tuple[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        separately: bool = False,
    ) -> None:
        self._output = folder / f".output-{time.monotonic_ns()}"
        self._errors = self._output.with_suffix(".errors") if separately else self._output
        for path in (self._output, self._errors):
            path.touch()
        files = (str(self._output), str(self._errors))
        arguments_of_main = (str(folder), files, arguments, die_at, dict(environment or {}))
        self._process = _CONTEXT.Process(target=_main, args=arguments_of_main)
        # The server looks for what it imports in the folder that it is started in, and says nothing if it is not there.
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(Path(__file__).parents[1])
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        """What it has said so far on stderr."""
        return self._errors.read_text(encoding="utf-8")

    def until(self, there: str | Callable[[], object], seconds: float = 120) -> None:
        """Wait until it has said ``there``, or until ``there()`` holds."""
        end = time.monotonic() + seconds
        while not (there in self.output if isinstance(there, str) else there()):
            assert self._process.is_alive(), self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """A signal, if it still runs."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """The exit code; minus the signal's number where one killed it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, self.output
        return self._process.exitcode


def _main(
    folder: str,
    files: tuple[str, str],
    arguments: tuple[str, ...],
    die_at: tuple[str, int] | None,
    environment: dict[str, str],
) -> None:
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    sys.path.insert(0, folder)
    assert _PRELOADED in sys.modules, "the fork server could not import it"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    import torch

    from lrexport.cli import main

    torch.set_num_threads(1)
    if die_at is not None:
        _die_at(*die_at)
    sys.argv = [str(Path(sys.executable).with_name("lrexport")), *arguments]  # what further processes are started by
    os.environ |= {"PYTHONPATH": folder, **environment}
    main.main()


def _die_at(name: str, call: int) -> None:
    calls = iter(range(1, call))

    def dying(wrapped: Callable[..., object]) -> Callable[..., object]:
        def die(*arguments: object, **named: object) -> object:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return wrapped(*arguments, **named)

        return die

    for each in name.split("|"):
        setattr(os, each, dying(getattr(os, each)))
