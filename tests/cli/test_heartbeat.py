"""Without a terminal, long work says what it does; short work says nothing."""

from __future__ import annotations

import threading
import time

import pytest

from lrexport.cli import progress
from lrexport.cli.heartbeat import Heartbeat
from lrexport.cli.progress import Progressing
from lrexport.events import ChoosingRanks, LayersTimed, Measuring, StepDone, Working


def _wait_for(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What is on stderr once it contains ``text``; a guard against waiting for ever."""
    printed, until = "", time.monotonic() + 20
    while text not in printed and time.monotonic() < until:
        time.sleep(0.02)
        printed += capsys.readouterr().err
    return printed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Heartbeat", lambda: Heartbeat(0.1))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Working("exporting model.onnx"), "exporting model.onnx, "),
        (Working("scoring", 3, 9), "scoring: 3 of 9, "),
        (ChoosingRanks(512), "choosing ranks, "),
        (LayersTimed(4, 40, "local"), "timing layers on local: 4 of 40, "),
        (Measuring("pi", 30, 100), "measuring on pi: 30 of 100, "),
        (StepDone("svd", 0, 2, 4, 30, 1.5), "SVD training: 5 of 60, "),
    ],
)
def test_long_work_says_what_it_does_and_for_how_long(capsys: pytest.CaptureFixture[str], event: Working, text: str) -> None:
    with Progressing() as show:
        show(event)
        printed = _wait_for(capsys, " so far")
    assert text in printed
    assert printed.endswith(" so far\n")


@pytest.mark.usefixtures("impatient")
def test_nothing_is_said_before_the_first_event_nor_after_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    with Progressing() as show:
        time.sleep(0.3)
        assert capsys.readouterr().err == ""
        show(Working("a"))
        _wait_for(capsys, " so far")
    capsys.readouterr()
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_short_work_says_nothing_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with Progressing() as show:
        for text in ("a", "b", "c"):
            show(Working(text))
        show.say("done")
    assert capsys.readouterr().err == "done\n"
