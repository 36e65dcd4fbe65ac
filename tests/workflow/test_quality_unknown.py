"""Compression without data: nothing looked at the outputs, and everything that shows the result says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrexport.cli.main import run
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))

make.input_shape = (1, 8, 8)
"""
UNTRAINED = ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_with(tmp_path_factory, unknown_network=NETWORK)
    with inside_folder(folder):
        assert run(["compress", "unknown_network:make", "--macs", "0.5", "-o", "free"]) == 0
    return folder


def test_the_command_its_table_and_the_record_say_that_quality_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "unknown_network:make", "--macs", "0.5", "-o", "again"]) == 0
    shown = capsys.readouterr()
    assert "warning: quality unknown: the network was compressed without data" in shown.err
    assert "--data" in shown.err
    assert any(line.split() == ["quality", "unknown"] for line in shown.out.splitlines())
    assert any(note.startswith("quality unknown") for note in load_record(Path("again")).notes)


def test_inspect_report_and_check_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "free"]) == 0
    assert any(line.split() == ["quality", "unknown"] for line in capsys.readouterr().out.splitlines())
    assert run(["report", "free", "--format", "markdown", "-o", "-"]) == 0
    assert "- quality unknown" in capsys.readouterr().out
    Path("lrexport.toml").write_text('[budget]\nmax_macs_ratio = "0.9x"\n')
    run(["check", "free", "--json", "check.json", "--markdown", "check.md"])
    assert "note: free: quality unknown" in capsys.readouterr().err
    assert "quality unknown" in json.loads(Path("check.json").read_text())["models"][0]["notes"][0]
    assert "quality unknown" in Path("check.md").read_text()


@pytest.mark.slow
def test_a_network_that_was_scored_after_all_is_not_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["onnx", "free", "--rounds", "0"]) == 0
    assert "unknown" in capsys.readouterr().out
    assert run(["onnx", "free", "--rounds", "0", "--data", "digits"]) == 0
    assert "unknown" not in capsys.readouterr().out
    assert not load_record(Path("free")).notes


def test_with_data_quality_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "unknown_network:make", "--data", "digits", *UNTRAINED, "--macs", "0.5", "-o", "known"]) == 0
    shown = capsys.readouterr()
    assert "quality unknown" not in shown.err + shown.out


def test_a_network_that_stays_whole_is_not_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "unknown_network:make", "--macs", "1", "--keep", "*", "-o", "whole"]) in (0, 2)
    assert "quality unknown" not in capsys.readouterr().err
