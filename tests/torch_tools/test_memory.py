"""Memory that is freed is kept for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lrexport.torch_tools.memory import hold_freed_memory

# Prints whether memory is held, then page faults of tensors that are made and freed again: before and after.
FAULTS = """
import resource, torch
from lrexport.torch_tools.memory import hold_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
given_back = faults()
print(hold_freed_memory(), given_back, (faults(), faults())[1])
"""


def faults(**environment: str) -> tuple[bool, int, int]:
    output = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    held, before, after = output.stdout.split()
    return held == "True", int(before), int(after)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is what is set")
def test_freed_tensors_are_not_taken_from_the_system_anew() -> None:
    held, before, after = faults()
    if not held:
        pytest.skip("no glibc here")
    assert before > 20 * 2_000  # 48 MB are 11,719 pages, or fewer where they are larger
    assert after < 0.01 * before


def test_the_user_s_own_settings_of_malloc_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not hold_freed_memory()
