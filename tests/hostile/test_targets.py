"""Files with strange names, and devices that do not answer, vanish or hang: docs/faults.md, Devices, Names and streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lrexport.measure.targets.ssh import CONFIG_VARIABLE
from tests.board import Board, write_model, write_ssh_config
from tests.conftest import heed_ctrl_c
from tests.hostile.support import Command, Outcome, listing
from tests.hostile.test_limits import asking_for, endless
from tests.waiting import until

ENDLESS = ["--rounds", "1000000"]

STRANGE = ['it\'s "a" $(touch pwned)`touch pwned`;&|*.onnx', "-oProxyCommand=\n%hü.onnx"]


@pytest.fixture
def model(here: Path) -> str:
    write_model(Path("model.onnx"))
    return "model.onnx"


@pytest.mark.parametrize("where", ["here", "on a device"])
def test_files_with_any_name_are_measured_and_none_is_run_as_a_command(where: str, lrexport: Command, board: Board) -> None:
    for name in STRANGE:
        write_model(Path(name))
    before = listing(Path())
    target = ["--target", board.url] if where == "on a device" else []
    done = lrexport("bench", "--rounds", "10", *target, "--", *STRANGE)
    assert done.code == 0
    assert all(name.replace("\n", "\\x0a") in done.out for name in STRANGE)
    assert listing(Path()) == before
    assert board.left() == []


@pytest.mark.parametrize(
    "target",
    [
        "ssh://-oProxyCommand=touch pwned",
        "ssh://-oProxyCommand=touch${IFS}pwned",
        "ssh://-oProxyCommand=x@board",
        "ssh://board?python=$(touch pwned)",
        "ssh://board?python=python3;touch",
        "ssh://board:22;touch",
        "ssh://`touch pwned`",
        "ssh://board?ProxyCommand=touch",
    ],
)
def test_a_target_that_would_be_an_option_or_a_command_is_refused_before_ssh_is_called(
    target: str, lrexport: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bin").mkdir()
    Path("bin/ssh").write_text("#!/bin/sh\ntouch called\n")
    Path("bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    before = listing(Path())
    done = lrexport("bench", model, "--target", target)
    assert done.code == 2
    assert "ssh://[user@]host[:port]" in done.err or "It may contain letters, digits" in done.err
    assert listing(Path()) == before


def test_a_device_whose_host_key_is_not_known_is_not_accepted(
    lrexport: Command, model: str, board: Board, here: Path
) -> None:
    known = here / "known_hosts"
    known.touch()
    done = _with_config(lrexport, board, known, board.folder / "user_key", model)
    assert done.code == 4
    assert "its host key is unknown, and unknown keys are not accepted" in done.err
    assert f"Connect by hand once and compare the key: ssh ssh://{board.user}@127.0.0.1:{board.port} true" in done.err
    assert known.read_text() == ""


def test_a_device_whose_host_key_has_changed_is_not_accepted(
    lrexport: Command, model: str, board: Board, here: Path
) -> None:
    known = here / "known_hosts"
    other = (board.folder / "other_key.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{board.port} {other[0]} {other[1]}\n")
    before = known.read_bytes()
    done = _with_config(lrexport, board, known, board.folder / "user_key", model)
    assert done.code == 4
    assert "its host key has changed" in done.err
    assert "ssh-keygen -R" in done.err
    assert known.read_bytes() == before


def test_a_key_that_the_device_does_not_know_is_said_with_what_to_do(lrexport: Command, model: str, board: Board) -> None:
    done = _with_config(lrexport, board, board.folder / "known_hosts", board.folder / "other_key", model)
    assert done.code == 4
    assert "does not accept this user's key" in done.err
    assert "ssh-copy-id" in done.err


def _with_config(lrexport: Command, board: Board, known_hosts: Path, key: Path, model: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        write_ssh_config(Path("other_config").absolute(), known_hosts, key)
        patch.setenv(CONFIG_VARIABLE, str(Path("other_config").absolute()))
        return lrexport("bench", model, "--target", board.url)


UNREACHABLE: dict[str, tuple[Callable[[Board], str], str, str]] = {
    "nobody listens": (lambda board: "ssh://127.0.0.1:1", "it cannot be reached", "Check that it is on"),
    "no such host": (lambda board: "ssh://no-such-host.invalid", "unknown host", "Check the name"),
    "no Python": (
        lambda board: board.url.replace(sys.executable, "/nowhere/python"),
        "cannot use /nowhere/python: ",
        "?python=",
    ),
    "an old Python": (
        lambda board: board.with_python('exec $PYTHON -c "import sys; sys.version_info = (3, 7); $(printf "%s" "$3")"'),
        "Python is too old: 3.",
        "Install Python 3.9 or newer there",
    ),
    "a restricted shell": (lambda board: board.with_python("echo not here; exit 3"), "exit status 3", ""),
}


@pytest.mark.parametrize("what", UNREACHABLE)
def test_a_device_that_cannot_measure_is_told_with_the_next_step(
    what: str, lrexport: Command, model: str, board: Board
) -> None:
    make, words, hint = UNREACHABLE[what]
    done = lrexport("bench", model, "--target", make(board))
    assert done.code == 4
    assert words in done.err
    assert hint in done.err
    assert not done.out
    assert board.left() == []


def test_a_device_without_the_runtime_is_told_how_to_install_it(
    lrexport: Command, model: str, board: Board, here: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here / "bare"], check=True)
    done = lrexport("bench", model, "--target", board.url.replace(sys.executable, str(here / "bare" / "bin" / "python")))
    assert done.code == 4
    assert "bare/bin/python has no usable numpy" in done.err
    assert "python -m pip install numpy" in done.err
    assert board.left() == []


def test_a_machine_without_ssh_is_told(lrexport: Command, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = lrexport("bench", model, "--target", "ssh://board")
    assert done.code == 4
    assert "ssh is not installed on this machine" in done.err


def test_a_device_without_room_for_the_files_says_so_and_keeps_none(lrexport: Command, model: str, board: Board) -> None:
    done = lrexport("bench", model, "--target", board.with_python('ulimit -f 4; exec $PYTHON "$@"'))
    assert done.code == 4
    assert "File too large" in done.err
    assert board.left() == []


def _bench(board: Board, *arguments: str, url: str | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own, once the device has loaded the file in another process and measures."""
    command = [sys.executable, "-m", "lrexport", "bench", *arguments, "--target", url or board.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    assert until(lambda: board.running("--cold"), 20)
    assert until(lambda: not board.running("--cold"), 20)
    return process


def test_a_connection_that_is_lost_in_a_measurement_gives_a_partial_result_and_leaves_nothing(
    model: str, board: Board
) -> None:
    process = _bench(board, model, *ENDLESS)
    time.sleep(2)  # the device tells its samples once a second
    board.cut()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "partial" in out
    assert " of 1000000 rounds before the target was lost" in err
    assert "the connection was lost" in err
    assert board.left() == []
    assert board.running("job.json") == []


def test_a_device_that_hangs_is_given_up_and_leaves_nothing(model: str, board: Board) -> None:
    process = _bench(board, model, *ENDLESS, url=f"{board.url}&timeout=5")
    (runner,) = board.running("job.json")
    os.kill(runner, signal.SIGSTOP)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "hangs: no answer for 5 s" in err
    assert "?timeout=SECONDS" in err
    assert board.left() == []
    assert board.running("job.json") == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_a_measurement_that_is_stopped_here_leaves_nothing_on_the_device(
    number: signal.Signals, code: int, model: str, board: Board
) -> None:
    process = _bench(board, model, *ENDLESS)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert board.left() == []
    assert board.running("job.json") == []


@pytest.mark.slow
def test_a_measurement_that_is_stopped_here_leaves_no_process_on_this_machine(model: str, here: Path) -> None:
    command = [sys.executable, "-m", "lrexport", "bench", model, *ENDLESS]
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(here)}, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    assert until(lambda: list(here.glob("lrexport-*/job.json")), 20)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (130, False)
    assert list(here.glob("lrexport-*")) == []


FLOODS = {
    "endless lines": ("yes", "floods its output with text that is not an answer"),
    "an endless line": ("yes | tr -d '\\n'", "floods its output: a line of more than"),
    "an answer of another program": (
        'echo \'{"environment": {"cpu": 7}}\'; sleep 60',
        "gave an answer that is not from lrexport's runner",
    ),
    "a flood of messages": ("yes >&2 & sleep 1; kill $!; exit 1", "stopped during a measurement: y"),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_device_that_floods_or_answers_nonsense_is_given_up_with_its_name(
    what: str, lrexport: Command, model: str, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, message = FLOODS[what]
    monkeypatch.setattr("lrexport.measure.targets.answers._LINE_BYTES", 1_000_000)
    done = lrexport("bench", model, "--target", board.with_python(script))
    assert done.code == 4
    assert message in done.err
    assert f"ssh://{board.user}@127.0.0.1:{board.port}" in done.err
    assert len(done.err) < 2000
    assert board.left() == []


def test_limits_of_time_and_memory_hold_on_a_device_as_well(lrexport: Command, board: Board) -> None:
    endless("endless.onnx")
    asking_for("large.onnx", 10**9)
    for file, option, reason in (
        ("endless.onnx", ("--timeout", "1"), "the first run takes more than 1 s"),
        ("large.onnx", ("--memory", "500MB"), "it needs more than its memory limit of 0.5 GB"),
    ):
        done = lrexport("bench", file, "--rounds", "10", *option, "--target", board.url)
        assert done.code == 3
        assert f"cannot measure {file}: {reason}" in done.err
        assert board.left() == []
        assert board.running("--cold") == board.running("job.json") == []
