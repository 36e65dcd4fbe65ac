"""Limits that a process sets for itself before it opens another's file: memory, processor time, the life of its parent.

Needs Python 3.9 and nothing else: it is sent to devices too. What a system has no limits for is left without.
"""

# Devices may have an older Python than the rest of lrexport asks for.
from __future__ import annotations

import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def confine(memory: int | None = None, cpu_seconds: int | None = None) -> None:
    """Let this process allocate ``memory`` bytes more than it holds now, and use so many seconds of processor time.

    An allocation beyond it fails, as MemoryError or in the C++ library's own words; the processor's time ends it with
    SIGXCPU, whatever code is running. No core is dumped.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    _limit(resource, resource.RLIMIT_CORE, 0)
    if cpu_seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource, resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds)
    if memory is not None:
        # What can be written, private, is what costs memory; address space alone may be reserved by the gigabyte.
        held = _status_bytes("VmData")
        kind = resource.RLIMIT_AS if held is None else resource.RLIMIT_DATA
        _limit(resource, kind, (held or 0) + memory)


def die_with_parent(parent: int | None = None) -> None:
    """Have this process killed when the one that started it ends, however that ended (Linux).

    ``parent`` is its number, by which it is known whether it has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = parent or os.getppid()
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # a Python or a C library without it
        return
    if os.getppid() != parent:  # it has ended
        os.kill(os.getpid(), signal.SIGKILL)


def memory_here() -> int | None:
    """Bytes of memory that this process's share of the machine has: of its control group, where that has less; or None."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(place, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # there is none, or it says "max"
            pass
    return total


def _limit(resource: Any, kind: int, value: int) -> None:
    """Lower a limit; one that is lower already stays."""
    try:
        soft, hard = resource.getrlimit(kind)
        values = [limit for limit in (soft, hard, value) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(values), hard))
    except (ValueError, OSError):  # not on this system
        pass


def _status_bytes(name: str) -> int | None:
    """An entry of /proc/self/status in bytes; None without one."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next((1024 * int(line.split()[1]) for line in status if line.startswith(f"{name}:")), None)
    except OSError:
        return None
