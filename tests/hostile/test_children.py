"""Child processes for foreign files: forked where the system can, ended with whoever waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from lrexport.artifacts import children
from lrexport.artifacts.children import run_child, threads_with_children
from lrexport.artifacts.onnx_files import ask_child
from lrexport.errors import InputError
from tests.board import children as children_of
from tests.hostile import crashing
from tests.hostile.support import processes_with
from tests.waiting import until

MODULE = crashing.__name__


@pytest.fixture(params=["forked", "started"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "started":
        monkeypatch.setattr(children, "CAN_FORK", False)
    return request.param


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fork server for one test."""
    monkeypatch.setattr(children, "_server", None)
    yield
    children._retire_last()


def test_a_child_answers_and_a_crash_is_known_by_its_signal(each_way: str) -> None:
    assert run_child(MODULE, ["answer"], 60)[0] == 0
    status, printed = run_child(MODULE, ["crash after words"], 60)
    assert (status, printed.strip()) == (-signal.SIGSEGV, "half an answer")
    assert run_child("lrexport.absent", [], 60)[0] == 1


def test_a_crash_over_a_file_is_an_error_with_its_signal(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"the parser crashed \(exit -11\)"):
        ask_child(MODULE, path, "crash")


def test_a_child_that_does_not_end_is_killed_at_its_time(each_way: str, own_server: None) -> None:
    with pytest.raises(TimeoutError):
        run_child(MODULE, ["sleep"], 1)
    assert _gone(_forked if each_way == "forked" else _started)


def test_children_of_several_threads_are_forked_from_one_server(own_server: None) -> None:
    with threads_with_children(4) as pool:
        answers = [answer for _, answer in pool.map(lambda _: run_child(MODULE, ["answer"], 60), range(8))]
    assert len({answer.split()[0] for answer in answers}) == 8
    assert len({answer.split(maxsplit=1)[1] for answer in answers}) == 1


def test_a_signal_kills_all_running_children(own_server: None) -> None:
    waiting: list[Future[tuple[int, str]]] = []

    def interrupted() -> None:
        with threads_with_children(2) as pool:
            waiting.extend(pool.submit(run_child, MODULE, ["sleep"], 60) for _ in range(2))
            assert until(lambda: len(_forked()) == 2, 50)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _gone(_forked)


def test_a_server_that_was_killed_is_started_again(own_server: None) -> None:
    run_child(MODULE, ["answer"], 60)
    first = children._server
    assert first is not None
    os.kill(first._process.pid, signal.SIGKILL)
    assert run_child(MODULE, ["answer"], 60)[0] == 0
    assert children._server is not first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_server_and_its_children_end_with_the_process(number: signal.Signals) -> None:
    code = f"from lrexport.artifacts.children import run_child; run_child({MODULE!r}, ['sleep'], 300)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert until(lambda: _grandchildren(process.pid), 60)
    (server,) = children_of(process.pid)
    (child,) = _grandchildren(process.pid)
    process.send_signal(number)
    process.wait(20)
    assert _gone(lambda: [each for each in (server, child) if Path(f"/proc/{each}").exists()])


def _forked() -> list[int]:
    """Children of this process's fork server."""
    return [] if children._server is None else children_of(children._server._process.pid)


def _started() -> list[int]:
    """Children of this process that were started to run the module."""
    return [each for each in children_of(os.getpid()) if each in processes_with(f"-m\0{MODULE}")]


def _grandchildren(process: int) -> list[int]:
    return [each for child in children_of(process) for each in children_of(child)]


def _gone(left: Callable[[], object]) -> bool:
    return until(lambda: not left(), 10)
