"""What the tests of bad input share: the tiny network's source, files as they are on disk, limits on time and memory."""

from __future__ import annotations

import importlib
import resource
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TINY = """
    import torch
    from torch import nn

    def make():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
        )

    make.input_shape = (3, 8, 8)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def write_module(name: str, source: str) -> None:
    """A module in the current folder, importable at once."""
    Path(f"{name}.py").write_text(textwrap.dedent(source))
    importlib.invalidate_caches()


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def frugally(megabytes: int = 200, seconds: float = 20) -> Iterator[None]:
    """Fail where the block raises the process's peak memory by more than ``megabytes``, or takes long."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    yield
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert risen < megabytes * 1024, f"peak memory rose by {risen / 1024:.0f} MiB"
    assert time.perf_counter() - began < seconds


def nothing_made(folder: str = "out") -> bool:
    """Whether a command that was refused left no file in its output, not even a hidden one."""
    return not Path(folder).exists() or not listing(Path(folder))
