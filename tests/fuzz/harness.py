"""Runs a reader on mutated inputs in forked processes with limits, and keeps what failed and what was new.

A reader may succeed or raise an LrexportError. Anything else has failed: another exception, a crash, a hang, memory beyond
the limit, a message that nobody could read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import NoReturn

from lrexport.errors import LrexportError
from tests.fuzz.mutate import Mutation

HANG_SECONDS = 10
_DEAD_SECONDS = 20  # C code that never looks at a signal
MOST_BYTES = 2 << 30
_MOST_MESSAGE = 20_000
_MOST_KEPT = 400  # inputs of a reader that behaved in a way not seen before
_BATCH = 2_000  # executions of one process: leaks of a library end with it
_MEMORY = Path("/dev/shm")  # files that live for a millisecond need no disk
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[\d.,]+|\S*/\S*")


@dataclass(frozen=True)
class Reader:
    """``read(content, folder)`` reads one input, which it may write into the empty ``folder``."""

    name: str
    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    mutate: Mutation


@dataclass
class Outcome:
    """What came of a reader's executions; ``failures`` by what failed, with the number of inputs and where one is kept."""

    executions: int = 0
    seconds: float = 0.0
    read: int = 0
    refused: int = 0
    failures: dict[str, tuple[int, Path]] = field(default_factory=dict)


class Hang(BaseException):
    """A reader took longer than ``HANG_SECONDS``."""


def replay(reader: Reader, content: bytes) -> str | None:
    """What fails with one input, None where nothing does; in this process, with limits of time alone and a traceback."""
    with tempfile.TemporaryDirectory(prefix="lrexport-fuzz-") as name, _in_time():
        try:
            reader.read(content, Path(name))
        except LrexportError as error:
            print(f"{type(error).__name__}: {error.message[:1000]}")
        except BaseException:
            traceback.print_exc()
        folder = Path(name) / "again"
        folder.mkdir()
        return _execute(reader, content, folder)[1]


def fuzz(reader: Reader, seed: int, home: Path, *, executions: int | None = None, seconds: float | None = None) -> Outcome:
    """Mutate and read until ``executions`` or ``seconds`` are over. ``home`` keeps corpora and failures by reader."""
    outcome, began = Outcome(), time.monotonic()
    corpus, failed = home / "corpus" / reader.name, home / "failures" / reader.name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = reader.seeds()
    while True:
        left = _BATCH if executions is None else min(_BATCH, executions - outcome.executions)
        time_left = None if seconds is None else seconds - (time.monotonic() - began)
        if left <= 0 or (time_left is not None and time_left <= 0):
            break
        kept = [path.read_bytes() for path in sorted(corpus.iterdir())]
        # Two of three mutations begin with what is sound: the kept inputs are mostly ones that were refused early.
        mixed = seeds * max(1, 2 * len(kept) // len(seeds)) + kept
        _batch(reader, f"{seed} {outcome.executions}", mixed, left, time_left, corpus, failed, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _batch(
    reader: Reader,
    seed: str,
    seeds: list[bytes],
    executions: int,
    seconds: float | None,
    corpus: Path,
    failed: Path,
    outcome: Outcome,
) -> None:
    """Some executions in a process of their own, which may well die of one."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lrexport-fuzz-", dir=place) as name:
        current = Path(name) / "current"
        ours, its = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _work(partial(_loop, reader, seed, seeds, executions, seconds, corpus, current, its), its)
        os.close(its)
        lines, silent = b"", False
        while not silent:
            ready, _, _ = select.select([ours], [], [], _DEAD_SECONDS)
            silent = not ready
            chunk = os.read(ours, 1 << 16) if ready else b""
            if ready and not chunk:
                break
            lines += chunk
        os.close(ours)
        if silent:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        for line in lines.decode(errors="replace").splitlines():
            kind, _, detail = line.partition("\t")
            if kind == "broken":
                raise RuntimeError(f"the harness failed with reader {reader.name}: {detail}")
            outcome.executions += 1
            outcome.read += kind == "read"
            outcome.refused += kind == "refused"
            if kind == "failed":
                what, _, digest = detail.rpartition("\t")
                _note(outcome, what, failed / digest)
        for path in Path(name).glob("failed-*"):
            _keep(failed, path.read_bytes())
        if status != 0:
            outcome.executions += 1
            what = f"no end within {_DEAD_SECONDS} s" if silent else f"ended with {os.waitstatus_to_exitcode(status)}"
            content = current.read_bytes() if current.exists() else b""
            _note(outcome, what, failed / _keep(failed, content))


def _note(outcome: Outcome, what: str, path: Path) -> None:
    count, kept = outcome.failures.get(what, (0, path))
    outcome.failures[what] = count + 1, kept


def _keep(folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(content)
    return digest


def _work(loop: Callable[[], None], pipe: int) -> NoReturn:
    """The child's side: one line a result, never a return into the parent's code."""
    code = 1
    try:
        _confine()
        with _silent():
            loop()
        code = 0
    except BaseException:  # of the harness itself: a reader's are its outcomes
        os.write(pipe, f"broken\t{traceback.format_exc(limit=-3)!r}\n".encode())
    finally:
        os._exit(code)


def _loop(
    reader: Reader,
    seed: str,
    seeds: list[bytes],
    executions: int,
    seconds: float | None,
    corpus: Path,
    current: Path,
    pipe: int,
) -> None:
    random, end = Random(seed), None if seconds is None else time.monotonic() + seconds
    known = {path.name for path in corpus.iterdir()}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + MOST_BYTES // 1024
    for number in range(executions):
        if end is not None and time.monotonic() > end:
            return
        content = reader.mutate(random, seeds)
        current.write_bytes(content)
        folder = current.parent / str(number)
        folder.mkdir()
        with _in_time():
            behaviour, failure = _execute(reader, content, folder)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most:
            failure = f"more than {MOST_BYTES >> 30} GiB of memory"
        _remove(folder)
        if failure is not None:
            digest = hashlib.sha256(content).hexdigest()[:16]
            (current.parent / f"failed-{digest}").write_bytes(content)
            os.write(pipe, f"failed\t{failure}\t{digest}\n".encode(errors="replace"))
            continue
        os.write(pipe, b"read\n" if behaviour == "read" else b"refused\n")
        name = hashlib.sha256(behaviour.encode(errors="replace")).hexdigest()[:16]
        if name not in known and len(known) < _MOST_KEPT and len(content) < 100_000:
            known.add(name)
            (corpus / name).write_bytes(content)


def _execute(reader: Reader, content: bytes, folder: Path) -> tuple[str, str | None]:
    """How the reader behaved, its message without what varies, and what failed."""
    try:
        reader.read(content, folder)
    except LrexportError as error:
        text = f"{type(error).__name__}: {error.message} {error.hint or ''}"
        if error.exit_code not in (2, 3, 4):
            return text, f"exit code {error.exit_code}"
        if len(text) > _MOST_MESSAGE:
            return "long", f"a message of more than {_MOST_MESSAGE} characters: {text[:60]!r}"
        return _VARIABLE.sub("", text), None
    except Hang:
        return "hang", f"no end within {HANG_SECONDS} s"
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lrexport/" in frame.filename]
        at = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        return "failed", f"{type(error).__name__} at {at}"
    return "read", None


def _confine() -> None:
    with open("/proc/self/statm", encoding="ascii") as stream:
        mapped = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, mapped + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What a library prints about damage is of no interest."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    yield


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def hang(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()
