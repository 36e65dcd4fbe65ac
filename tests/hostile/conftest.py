"""Bad input, made for real: a tiny network in a module file, commands run in this process, and a look at what is left."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrexport.cli.main import run
from lrexport.trust import consent
from tests.budget.support import check, sample  # noqa: F401
from tests.folders import forgetting_modules_of
from tests.hostile.support import TINY, Command, Outcome, write_module


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own current folder with the network ``tiny:make``, (3, 8, 8) to 10 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny", raising=False)  # of another test's folder
    with forgetting_modules_of(tmp_path):
        write_module("tiny", TINY)
        yield tmp_path


@pytest.fixture
def lrexport(here: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs one command line in this process; a traceback fails the test."""

    def command(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def compress(lrexport: Command) -> Command:
    """``lrexport compress tiny:make --macs 0.6 -o out`` with more options; the folder ``out`` must end without a result."""

    def command(*arguments: str | Path, model: str = "tiny:make") -> Outcome:
        return lrexport("compress", model, "--macs", "0.6", "-o", "out", "--device", "cpu", *arguments)

    return command


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, forgetting_modules_of(folder):
        patch.chdir(folder)
        write_module("tiny", TINY)
        assert run(["compress", "tiny:make", "--macs", "0.6", "-o", "run", "--device", "cpu"]) == 0
    return folder / "run"


@pytest.fixture
def finished(_finished: Path, here: Path) -> Path:
    """A copy of a finished, training-free run of ``tiny:make``: the folder ``run``, as a relative path."""
    shutil.copytree(_finished, "run")
    code = consent.code_at("tiny:make", "MODEL")
    assert code is not None
    with consent.session():
        consent.agree(code)  # as whoever makes a run does
    return Path("run")


@pytest.fixture
def network() -> nn.Sequential:
    """The network of ``tiny:make`` itself."""
    scope: dict[str, Callable[[], nn.Sequential]] = {}
    exec(textwrap.dedent(TINY), scope)
    return scope["make"]()


@pytest.fixture
def weights(network: nn.Sequential) -> dict[str, Tensor]:
    """Weights that fit ``tiny:make``."""
    return {name: torch.clone(value) for name, value in network.state_dict().items()}
