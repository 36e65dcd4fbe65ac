"""A short slice of ``make fuzz``, by fixed seeds; and that the harness notices what it is there for."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from lrexport.errors import DeviceError, InputError
from tests.fuzz import mutate
from tests.fuzz.harness import Reader, fuzz
from tests.fuzz.readers import READERS

_EXECUTIONS = {"onnx": 60, "run.json": 60, "spectra.json": 60, "pyproject": 40, "settings": 60, "recipe": 60}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses_whatever_it_is_given(name: str, tmp_path: Path) -> None:
    outcome = fuzz(READERS[name], 0, tmp_path, executions=_EXECUTIONS.get(name, 150))
    assert not outcome.failures
    assert outcome.read + outcome.refused == outcome.executions == _EXECUTIONS.get(name, 150)


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_of_a_reader_are_sound(name: str, tmp_path: Path) -> None:
    for number, seed in enumerate(READERS[name].seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused = name == "answers" and number > 0  # what a device says that cannot measure
        with pytest.raises(DeviceError) if refused else nullcontext():
            READERS[name].read(seed, folder)


def _misbehaving(kind: str) -> Reader:
    def read(content: bytes, folder: Path) -> None:
        if kind == "raise":
            raise KeyError("x")
        if kind == "exit":
            os._exit(7)
        if kind == "refuse":
            raise InputError("a fine message")
        if kind == "flood":
            raise InputError("x" * 100_000)
        time.sleep(3600)

    return Reader(kind, read, lambda: [b"seed"], mutate.of_bytes)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raise", "KeyError at ?"),
        ("exit", "ended with 7"),
        ("flood", "a message of more than"),
        ("sleep", "no end within 0.2 s"),
    ],
)
def test_a_fault_is_kept_and_said(kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.HANG_SECONDS", 0.2)
    outcome = fuzz(_misbehaving(kind), 0, tmp_path, executions=2)
    (what,) = outcome.failures
    assert words in what
    assert (tmp_path / "failures" / kind).iterdir()


def test_a_refusal_is_no_fault(tmp_path: Path) -> None:
    outcome = fuzz(_misbehaving("refuse"), 0, tmp_path, executions=20)
    assert (outcome.executions, outcome.refused, outcome.failures) == (20, 20, {})
