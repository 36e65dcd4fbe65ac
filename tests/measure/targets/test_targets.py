"""Targets: the same job, the same answers here and on a device behind a real sshd on this machine."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lrexport.errors import DeviceError, UsageError
from lrexport.measure import latency, receiver
from lrexport.measure.latency import Interrupted, measure, slowed_down
from lrexport.measure.runtimes.base import NAMES
from lrexport.measure.targets import MeasuringJob, parse_target
from lrexport.measure.targets.base import ModelRefused
from lrexport.measure.targets.local import Local
from lrexport.measure.targets.ssh import Ssh
from tests.board import Board, write_model


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("ssh://board", "ssh://board", Ssh("board")),
        ("ssh://pi@board.local:2222", "ssh://pi@board.local:2222", Ssh("board.local", "pi", 2222)),
        ("ssh://[fe80::1]:22", "ssh://[fe80::1]:22", Ssh("fe80::1", None, 22)),
        ("ssh://b?python=venv/bin/python3.12", "ssh://b", Ssh("b", python="venv/bin/python3.12")),
        ("ssh://b?python=/opt/p&timeout=20", "ssh://b", Ssh("b", python="/opt/p", most_silent_seconds=20)),
        ("local", "local", Local()),
    ],
)
def test_a_target_is_named_by_its_place_alone(text: str, name: str, wanted: Any) -> None:
    found = parse_target(text)
    assert (found, found.name) == (wanted, name)


@pytest.mark.parametrize(
    "text",
    [
        *("", "locals", "ssh://", "ssh:board", "ssh://a b", "ssh://@board", "ssh://-l@board", "ssh://a@-board", "ssh://%h"),
        *("ssh://board:0", "ssh://board:65536", "ssh://board:x", "ssh://board/etc", "ssh://pi:word@board", "ssh://bo;ard"),
        *("ssh://board?", "ssh://board?pyhton=x", "ssh://board?python=", "ssh://board?python=-c", "ssh://board\n"),
        *("ssh://board?python=a b", "ssh://board?python=$(id)", "ssh://board?timeout=0", "ssh://board?timeout=5s"),
        *("ssh://pï@board", "adb:emulator", "http://board"),
    ],
)
def test_what_is_no_target_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.fixture
def group(tmp_path: Path) -> dict[str, Path]:
    return {"wide": write_model(tmp_path / "wide.onnx", 32), "narrow": write_model(tmp_path / "narrow.onnx", 2)}


def test_a_device_answers_as_this_machine_does_and_nothing_is_left_there(board: Board, group: dict[str, Path]) -> None:
    job = MeasuringJob((group, {"again": group["wide"]}), rounds=8, profile=True)
    places = []
    for target in (Local(), parse_target(board.url)):
        found = list(target.run(job))
        if target.name != "local":
            assert places == found[:1]  # the device is this machine
        places.append(found[0])
        answers = {answer["group"]: answer["models"] for answer in found if "models" in answer}
        assert [set(answers[0]), set(answers[1])] == [{"wide", "narrow"}, {"again"}]
        for figures in (*answers[0].values(), *answers[1].values()):
            assert len(figures["samples_ms"]) == 8
            assert "Conv" in str(figures["operators_ms"])
        assert set(found[-1]) == {"done"}
    assert board.left() == []


def test_hundreds_of_small_files_go_through_one_connection(board: Board, tmp_path: Path) -> None:
    groups = [
        {f"{number}x{width}": write_model(tmp_path / f"{number}-{width}.onnx", width) for width in (1, 2, 3)}
        for number in range(100)
    ]
    before = board.log.count("Accepted publickey")
    job = MeasuringJob(groups, rounds=2, warmup_runs=2, sample_ms=0.01)
    found = [answer for answer in parse_target(board.url).run(job) if "models" in answer]
    assert [(answer["group"], set(answer["models"])) for answer in found] == [(i, set(g)) for i, g in enumerate(groups)]
    assert board.log.count("Accepted publickey") == before + 1
    assert board.left() == []


def test_the_environment_of_a_device_needs_no_model(board: Board) -> None:
    assert parse_target(board.url).environment() == Local().environment()


def test_what_a_login_script_prints_is_no_answer(board: Board) -> None:
    url = board.with_python("echo '  *** Welcome! *** {'; echo '42'; exec $PYTHON \"$@\"")
    assert "cpu" in parse_target(url).environment()


def test_a_consumer_that_stops_early_leaves_nothing_behind(board: Board, group: dict[str, Path]) -> None:
    answers = parse_target(board.url).run(MeasuringJob((group,), rounds=10**6))
    assert "environment" in next(answers)
    assert len(list(board.temporary.rglob("*.onnx"))) == 2
    answers.close()  # type: ignore[attr-defined]
    assert board.left() == []
    assert board.running("job.json") == []


def test_a_device_gives_up_by_itself_when_it_hears_nothing_any_more(tmp_path: Path) -> None:
    # A network that is gone closes no connection: only silence tells.
    source = Path(receiver.__file__).read_text().replace("_MOST_SILENT_SECONDS = 30", "_MOST_SILENT_SECONDS = 1")
    source += '\nsys.exit(main(["-c", "import time; time.sleep(60)"]))'
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for said, status in ((b"[]\n", -9), (b'[["a", 5]]\nab', 142)):
        command = [sys.executable, "-c", source]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        process.stdin.write(said)
        process.stdin.flush()
        began = time.monotonic()
        assert process.wait(20) in (status, 256 + status)
        assert time.monotonic() - began > 0.8
        assert list(tmp_path.iterdir()) == []
        process.stdin.close()


def test_a_device_says_how_much_it_has_received_while_a_slow_line_brings_it(tmp_path: Path) -> None:
    source = Path(receiver.__file__).read_text().replace("_PROGRESS = 1.0", "_PROGRESS = 0.0")
    source += '\nsys.exit(main(["-c", "print(open(\'a\').read())"]))'
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    process.stdin.write(b'[["a", 5]]\nab')
    process.stdin.flush()
    assert process.stdout.readline() == b'{"progress": {"stage": "receiving", "bytes": 2, "of_bytes": 5}}\n'
    process.stdin.write(b"cde")
    process.stdin.flush()
    assert process.stdout.readlines()[-1] == b"abcde\n"
    assert process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []
    process.stdin.close()


SENT = [*("runner", "inputs", "machine", "watch", "preparing", "serving", "receiver", "../confinement")]
RUNTIMES = {"numpy", "onnxruntime", "openvino", "ncnn", "MNN", "_tools"}
# Imported in functions: by runtimes with environments of their own, and by the stage that runs beside lrexport.
IN_FUNCTIONS = {
    "runtimes/executorch": {"torch", "executorch"},
    "runtimes/litert": {"torch", "litert_torch", "ai_edge_litert"},
    "preparing": {"torch", "lrexport.onnx_network.program"},
    "runtimes/openvino": {"nncf"},
}


@pytest.mark.parametrize("module", [*SENT, *(f"runtimes/{name}" for name in ("base", "compare", *NAMES))])
def test_what_is_sent_to_devices_is_python_3_9_and_asks_for_little(module: str) -> None:
    source = (Path(latency.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    own = {"confinement", *(f"measure.{name}" for name in ("inputs", "machine", "watch", "runner", "runtimes"))}
    own |= {f"measure.runtimes.{name}" for name in ("base", "compare", "onnxruntime")}
    allowed = {*RUNTIMES, *(f"lrexport.{name}" for name in own)}
    assert _imports(tree.body) <= allowed
    assert _imports(ast.walk(tree)) <= allowed | IN_FUNCTIONS.get(module, set())
    assert "strict=" not in source  # zip has it since 3.10


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    """What is imported beside Python's own: packages by name, lrexport's modules in full."""
    nodes = list(nodes)
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    packages = {name if name.startswith("lrexport.") else name.split(".")[0] for name in names}
    return packages - sys.stdlib_module_names


def test_ssh_is_called_by_an_argument_list_that_accepts_no_host_key_and_asks_nothing() -> None:
    command = Ssh("board", "pi", 2222, "venv/bin/python")._command()
    assert command[0] == "ssh"
    options = [command[place + 1] for place, word in enumerate(command) if word == "-o"]
    assert {"StrictHostKeyChecking=yes", "BatchMode=yes", "UpdateHostKeys=no", "ClearAllForwardings=yes"} <= set(options)
    assert command[-7:-1] == ["-p", "2222", "-l", "pi", "--", "board"]
    assert command[-1].startswith("exec venv/bin/python -I -c '")
    assert command[-1].count("'") == 2


class Scripted:
    """A target that answers what it is told to, then fails."""

    name = "scripted"

    def __init__(self, *answers: dict[str, Any], error: DeviceError | None = None) -> None:
        self.answers, self.error = answers, error

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        yield from self.answers
        if self.error:
            raise self.error

    def environment(self) -> dict[str, Any]:
        return {}


def samples(count: int) -> dict[str, Any]:
    return {"samples_ms": {"a": [1.0] * count, "b": [2.0] * count}, "stage": "measuring"}


def test_a_target_that_is_lost_leaves_a_partial_result_that_says_so(tmp_path: Path) -> None:
    lost = DeviceError("the connection was lost", "Measure again.")
    target = Scripted({"environment": {"cpu": "x"}}, {"progress": samples(30)}, {"progress": samples(30)}, error=lost)
    files = {"a": tmp_path / "a", "b": tmp_path / "b"}
    seen: list[dict[str, Any]] = []
    with pytest.raises(Interrupted, match="connection was lost") as caught:
        measure(files, "a", MeasuringJob((), rounds=100), target, seen.append)
    found = caught.value.measurement
    assert {latency.warning for latency in found.latencies.values()} == {
        "partial: 60 of 100 rounds before the target was lost"
    }
    assert (found.latencies["b"].ratio, found.environment, found.after) == (2.0, {"cpu": "x"}, None)
    assert len(seen) == 2


def test_a_target_that_is_lost_before_the_first_round_is_an_error_alone(tmp_path: Path) -> None:
    target = Scripted({"environment": {}}, {"progress": {"stage": "loading"}}, error=DeviceError("gone"))
    with pytest.raises(DeviceError, match="gone") as caught:
        measure({"a": tmp_path / "a"}, None, MeasuringJob(()), target)
    assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {}, None),
        ({"throttled": 3, "celsius": 40}, {"throttled": 3, "celsius": 80}, None),
        ({"throttled": 3}, {"throttled": 4}, "throttled for heat"),
        ({"governor": "performance"}, {"governor": "performance"}, None),
        ({"governor": "performance"}, {"governor": "powersave"}, "governor performance, then powersave"),
        ({"slowed": ["under-voltage"]}, {"slowed": ["under-voltage", "throttled"]}, "under-voltage, throttled"),
        ({}, {"slowed": ["cooling by frequency, step 2"]}, "cooling by frequency, step 2"),
    ],
)
def test_a_machine_that_was_slowed_down_makes_the_result_inconclusive(
    before: dict[str, Any], after: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    assert slowed_down(before, after) == reason
    figures = {"group": 0, "models": {"a": {"samples_ms": [1.0] * 50, "repeats": 1, "batch": 1}}}
    found = measure(
        {"a": tmp_path / "a"}, None, MeasuringJob(()), Scripted({"environment": before}, figures, {"done": after})
    )
    wanted = f"inconclusive: the processor was slowed down ({reason})" if reason else None
    assert found.latencies["a"].warning == wanted


def test_fewer_rounds_than_the_protocol_wants_are_inconclusive(group: dict[str, Path]) -> None:
    found = measure(group, None, MeasuringJob((), rounds=10)).latencies["wide"]
    assert found.warning == "inconclusive: 10 rounds; at least 50 are needed"


@pytest.mark.parametrize(
    ("batch", "asked", "wanted"),
    [(1, 1, 1), (1, 0, 1), (3, 0, 3), ("batch", 0, 1), ("batch", 5, 5), (2, 5, None), (2, 1, None)],
)
def test_the_batch_is_the_files_own_or_what_was_asked_for(
    batch: int | str, asked: int, wanted: int | None, tmp_path: Path
) -> None:
    files = {"m": write_model(tmp_path / "m.onnx", batch=batch)}
    job = MeasuringJob((), rounds=2, batch=asked)
    if wanted is None:
        with pytest.raises(ModelRefused, match=f"has a fixed batch of {batch}, not {asked}"):
            measure(files, None, job)
    else:
        assert measure(files, None, job).latencies["m"].batch == wanted


def test_a_crash_of_the_runtime_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "onnxruntime.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"stopped early: it crashed \(SIGSEGV\)"):
        measure({"a": write_model(tmp_path / "a.onnx")}, None, MeasuringJob((), rounds=2))
