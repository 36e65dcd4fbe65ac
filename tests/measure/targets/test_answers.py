"""Answers of a device that is broken or hostile: bounded, checked, and an error of the device: docs/faults.md, Devices."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrexport.errors import DeviceError
from lrexport.measure.targets import answers as answers_of
from lrexport.measure.targets.answers import answers
from lrexport.measure.targets.base import Flood, InputsRefused, LimitReached, MeasuringJob, ModelRefused, Tail, lines_of

ENVIRONMENT = {
    "cpu": "x",
    "isa": ["avx2"],
    "cores": 4,
    "system": "Linux x86_64",
    "python": "3.11.2",
    "onnxruntime": "1.23.0",
}
FIGURES = {
    "samples_ms": [1.0, 2.0],
    "repeats": 1,
    "batch": 1,
    "inputs": {"x": {"shape": [1, 8], "dtype": "float32", "values": "random"}},
    "load_ms": 3.0,
    "first_run_ms": 4.0,
    "peak_bytes": 5,
    "operators_ms": {"Conv": 0.5},
    "nodes_ms": {"conv": 0.5},
}
HONEST: list[Any] = [
    {"environment": ENVIRONMENT},
    {"progress": {"stage": "receiving", "bytes": 3, "of_bytes": 9}},
    {"progress": {"group": 0, "stage": "loading", "model": "a"}},
    {"progress": {"group": 0, "stage": "measuring", "done": 1, "of": 2, "samples_ms": {"a": [1.0], "b": [1.0]}}},
    {"group": 0, "models": {"a": FIGURES, "b": FIGURES}},
    {"done": ENVIRONMENT},
]
JOB = MeasuringJob([{"a": Path("a.onnx"), "b": Path("b.onnx")}], rounds=2)


def _ask(values: list[Any], job: MeasuringJob = JOB) -> list[dict[str, Any]]:
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return list(answers(lines, job, "ssh://board", lambda: DeviceError("it ended early")))


def test_what_the_runner_answers_passes_as_it_is_and_what_others_print_is_passed_over() -> None:
    noise = ["Welcome!", "[1, 2]", "{not json", '{"other": 1}', "[" * 100_000, '{"a":' * 100_000, "1" * 10_000]
    assert _ask([*noise, *HONEST]) == HONEST


@pytest.mark.parametrize("key", ["celsius", "governor", "throttled", "onnxruntime"])
def test_null_is_passed_on_as_a_key_that_is_missing(key: str) -> None:
    assert key not in _ask(_changed(0, "environment", key, value=None))[0]["environment"]


def _changed(place: int, *keys: Any, value: Any) -> list[Any]:
    found = json.loads(json.dumps(HONEST))  # so that nothing in it is shared
    inner = found[place]
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return found


WRONG: dict[str, list[Any]] = {
    "no environment": HONEST[1:],
    "an environment twice": [HONEST[0], *HONEST],
    "an environment that is text": _changed(0, "environment", value="fast"),
    "a processor that is a number": _changed(0, "environment", "cpu", value=7),
    "a processor of a megabyte": _changed(0, "environment", "cpu", value="x" * 10**6),
    "a fact that nobody knows": _changed(0, "environment", "secret", value=1),
    "cores beyond any machine": _changed(0, "environment", "cores", value=10**30),
    "an unknown group": _changed(4, "group", value=7),
    "a group below zero": _changed(4, "group", value=-1),
    "a group that is text": _changed(4, "group", value="0"),
    "the same group twice": [*HONEST[:5], HONEST[4], HONEST[5]],
    "figures of one file alone": _changed(4, "models", value={"a": FIGURES}),
    "figures of a file that nobody asked for": _changed(4, "models", "c", value=FIGURES),
    "a list of figures": _changed(4, "models", value=[FIGURES]),
    "samples that are not numbers": _changed(4, "models", "a", "samples_ms", value=[1.0, "2"]),
    "a sample that is NaN": _changed(4, "models", "a", "samples_ms", value=[1.0, float("nan")]),
    "an infinite sample": _changed(4, "models", "a", "samples_ms", value=[1.0, float("inf")]),
    "a negative sample": _changed(4, "models", "a", "samples_ms", value=[1.0, -2.0]),
    "a sample of no time": _changed(4, "models", "a", "samples_ms", value=[1.0, 0.0]),
    "fewer samples of one file": _changed(4, "models", "a", "samples_ms", value=[1.0]),
    "no samples": _changed(4, "models", value={name: {**FIGURES, "samples_ms": []} for name in "ab"}),
    "more samples than rounds": _changed(4, "models", value={name: {**FIGURES, "samples_ms": [1.0] * 3} for name in "ab"}),
    "a negative time to load": _changed(4, "models", "a", "load_ms", value=-1.0),
    "a negative peak": _changed(4, "models", "a", "peak_bytes", value=-5),
    "a time of an operator that is NaN": _changed(4, "models", "a", "operators_ms", value={"Conv": float("nan")}),
    "no repeats": _changed(4, "models", "a", "repeats", value=0),
    "no inputs": _changed(4, "models", "a", "inputs", value=None),
    "progress that is a number": _changed(1, "progress", value=3),
    "progress of an unknown file": _changed(2, "progress", "model", value="../../etc/passwd"),
    "progress samples of an unknown file": _changed(3, "progress", "samples_ms", value={"c": [1.0]}),
    "progress samples of one file alone": _changed(3, "progress", "samples_ms", value={"a": [1.0]}),
    "progress with more samples than rounds": [*HONEST[:4], HONEST[3], HONEST[3], *HONEST[4:]],
    "an end before the groups": [HONEST[0], HONEST[5]],
    "an error that is a list": [HONEST[0], {"error": ["x"]}],
    "an error about an unknown file": [HONEST[0], {"error": "x", "model": "../../etc/passwd"}],
    "a missing package of its choice": [HONEST[0], {"error": "x", "missing": "evil", "python": "python3"}],
}


@pytest.mark.parametrize("what", WRONG)
def test_an_answer_that_the_runner_cannot_have_given_is_an_error_of_the_device(what: str) -> None:
    with pytest.raises(DeviceError, match="ssh://board gave an answer that is not from lrexport's runner") as raised:
        _ask(WRONG[what])
    assert raised.value.exit_code == 4
    assert len(raised.value.message) < 2500


def test_errors_that_the_runner_gives_are_told_apart() -> None:
    for answer, kind in (
        ({"error": "no", "model": "a", "is_about_inputs": True}, InputsRefused),
        ({"error": "no", "model": "b", "limit": "time"}, LimitReached),
        ({"error": "no", "model": "b", "limit": None}, ModelRefused),
    ):
        with pytest.raises(kind):
            _ask([HONEST[0], answer])
    with pytest.raises(DeviceError) as raised:
        _ask([HONEST[0], {"error": "x" * 10**6, "missing": "numpy", "python": "/opt/my python;reboot"}])
    assert raised.value.hint == "Install it there: '/opt/my python;reboot' -m pip install numpy"
    assert len(raised.value.message) < 2000


def test_lines_that_are_no_answers_end_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_of, "_MOST_NOISE", 10_000)
    with pytest.raises(DeviceError, match="floods its output with text that is not an answer"):
        _ask(["y"] * 20_000)


def test_progress_without_end_ends_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_of, "_MOST_PROGRESS", 100)
    with pytest.raises(DeviceError, match="progress without end"):
        _ask([HONEST[0], *[{"progress": {"group": 0, "stage": "warming up"}}] * 200])


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_stands_anywhere_in_an_answer_it_passes_or_is_an_error_of_the_device(data: st.DataObject) -> None:
    values = json.loads(json.dumps(HONEST))
    inner: Any = values
    while True:
        key = data.draw(st.sampled_from(list(range(len(inner)) if isinstance(inner, list) else inner)))
        if not isinstance(inner[key], (dict, list)) or not inner[key] or data.draw(st.booleans()):
            inner[key] = data.draw(TREES)
            break
        inner = inner[key]
    with contextlib.suppress(DeviceError):
        _ask(values)


def _process(code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"import sys, time\n{code}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


FLOODS: dict[str, tuple[str, type[DeviceError]]] = {
    "an endless line": ("while True: sys.stdout.write('x' * 65536)", Flood),
    "endless lines": ("while True: print('y')", DeviceError),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_on_stdout_ends_in_an_error_and_costs_little(what: str) -> None:
    code, kind = FLOODS[what]
    process = _process(code)
    try:
        began = time.monotonic()
        with pytest.raises(kind):
            list(answers(lines_of(process, 1 << 20, 60), JOB, "ssh://board", lambda: pytest.fail("it ended")))
        assert time.monotonic() - began < 60
    finally:
        process.kill()
        process.wait()


def test_of_a_flood_on_stderr_the_end_is_kept() -> None:
    process = _process("sys.stderr.write('x\\n' * 3_000_000 + 'the reason\\n')")
    assert process.stderr is not None
    tail = Tail(process.stderr)
    assert process.wait(60) == 0
    assert tail.text().endswith("x\nthe reason\n")
    assert len(tail.text()) <= 16_384


def test_lines_that_nobody_takes_wait_and_do_not_fill_the_memory() -> None:
    process = _process("for number in range(20_000): print(number)")
    lines = lines_of(process, 100, 60)
    assert next(lines) == "0\n"
    time.sleep(0.3)
    assert process.poll() is None  # it waits for the pipe
    assert sum(1 for _ in lines) == 19_999
    assert process.wait(20) == 0
