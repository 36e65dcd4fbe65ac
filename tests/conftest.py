"""What several test folders share: small networks, and the data beside the checkout where it is there."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as lrexport's entry point does, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers and what they start share the cores

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lrexport.measure.targets.ssh import CONFIG_VARIABLE
from lrexport.torch_tools.seeds import seed_torch
from tests.board import Board, start_board
from tests.folders import inside_folder
from tests.phone import FakePhone, start_phone

gc.disable()  # until every test is imported: what stays need not be visited again and again
SHARED = Path(__file__).parents[2] / "shared"


# Files that take longest. Run first, they do not keep one worker busy when the other has nothing left.
_LONG = {
    *("test_processes.py", "test_postgresql.py", "test_killed.py", "test_zoo.py", "test_browser.py", "test_own_budget.py"),
    *("test_resume.py", "test_networks.py", "test_pruning.py", "test_targets.py", "test_unlabelled_data.py"),
    *("test_pipeline.py", "test_inputs_and_outputs.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order of others, and within files, stays."""
    items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: garbage is looked for in what comes after them."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data" / "cifar10_jpeg.npz").is_file():
        pytest.skip("needs the experiments' data and weights in ../shared, which are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def _board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    yield from start_board(tmp_path_factory.mktemp("board"))


@pytest.fixture
def board(_board: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A device behind ssh, which is set up to know it."""
    monkeypatch.setenv(CONFIG_VARIABLE, str(_board.folder / "ssh_config"))
    return _board


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_torch(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tables of latencies, and code that was agreed to, are the tests' own, not those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LREXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LREXPORT_STATE", str(tmp_path_factory.mktemp("state")))
        yield


_EXPORT_CHECKS = [f"LREXPORT_{command}_EXPORT_CHECK" for command in ("COMPRESS", "TRAIN", "SWEEP")]


@pytest.fixture(autouse=True, scope="session")
def _no_export_checks() -> Iterator[None]:
    """Commands do not export the dense network first, nor keep pictures for the report: few tests are about these."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _EXPORT_CHECKS:
            patch.setenv(name, "false")
        patch.setenv("LREXPORT_COMPRESS_EXAMPLES", "0")
        yield


@pytest.fixture
def export_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands export the dense network before they work on it, as they do for users."""
    for name in _EXPORT_CHECKS:
        monkeypatch.delenv(name)


@pytest.fixture
def inside(folder: Path) -> Iterator[None]:
    """Be in the test module's own ``folder``, whose modules can be imported."""
    with inside_folder(folder):
        yield


class SmallNet(nn.Module):
    """A network with every kind of layer that matters here; (B, 3, 12, 12) → (B, 10)."""

    input_shape = (3, 12, 12)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.pointwise = nn.Conv2d(24, 48, 1)
        self.head = nn.Linear(48, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(torch.relu(self.body(x))))
        return self.head(torch.relu(self.pointwise(x)).mean((2, 3)))


@pytest.fixture
def small_net() -> nn.Module:
    return SmallNet().eval()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest wanted value."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def heed_ctrl_c() -> None:
    """A shell's background job, as CI may be, ignores Ctrl-C, and so do children unless this comes before they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def phone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePhone]:
    """A phone behind the real adb client."""
    yield from start_phone(tmp_path_factory.mktemp("phone"), monkeypatch)
