"""A copy of the sample repository, the command run inside of it, and outputs pinned in tests/budget/snapshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from lrexport.check import gather_facts
from lrexport.cli.main import run
from lrexport.measure.macs import onnx_survey
from tests.budget.make_sample import SAMPLE
from tests.hostile.support import Command, Outcome

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the sample repository as the current folder, outside of any CI."""
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@cache
def _surveyed(content: bytes, path: Path) -> onnx_survey.Survey:
    return onnx_survey.survey(path)


@pytest.fixture
def _looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the same name and content is looked into by one child process for all tests that say so."""
    monkeypatch.setattr(
        gather_facts,
        "survey",
        lambda path, shapes=None: _surveyed(path.read_bytes(), path) if not shapes else onnx_survey.survey(path, shapes),
    )


@pytest.fixture
def check(sample: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """``lrexport check`` in the sample repository, in this process; a traceback fails the test."""

    def command(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = run(["check", *map(str, arguments)])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def pinned() -> Callable[[str, str], None]:
    """Compares a text with a file in snapshots/; UPDATE_SNAPSHOTS=1 writes it instead."""

    def compare(name: str, found: str) -> None:
        path = SNAPSHOTS / name
        if os.environ.get("UPDATE_SNAPSHOTS"):
            path.write_text(found, encoding="utf-8")
        assert found == path.read_text(encoding="utf-8")

    return compare


def budget(limits: str, path: str = "run") -> None:
    """The sample's budgets become this one alone."""
    Path("pyproject.toml").write_text(f'[tool.lrexport.budget]\npath = "{path}"\n{limits}\n', encoding="utf-8")
