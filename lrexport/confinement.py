"""Limits that a process sets on itself before it opens a foreign file: memory, CPU time, the life of its parent.

Needs only Python 3.9, because it is also sent to devices. Limits that the system does not support are skipped.
"""

# Devices may have an older Python than the rest of lrexport requires.
from __future__ import annotations

import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def confine(memory: int | None = None, cpu_seconds: int | None = None) -> None:
    """Let this process allocate ``memory`` bytes more than it holds now, and use ``cpu_seconds`` more of CPU time.

    A larger allocation fails, with MemoryError or an error of the C++ library. At the end of the CPU time the process is
    killed by SIGXCPU, whatever code is running. No core is dumped.
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
        # Only private writable memory costs anything; libraries reserve gigabytes of mere address space.
        held = _status_bytes("VmData")
        kind = resource.RLIMIT_AS if held is None else resource.RLIMIT_DATA
        _limit(resource, kind, (held or 0) + memory)


def die_with_parent(parent: int | None = None) -> None:
    """Have this process killed when its parent ends for any reason (Linux).

    ``parent`` is the parent's process id, to detect that it has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = parent or os.getppid()
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # a Python or a C library without it
        return
    if os.getppid() != parent:  # it ended before prctl
        os.kill(os.getpid(), signal.SIGKILL)


def memory_here() -> int | None:
    """Bytes of memory that this process may use: the machine's, or its control group's limit if lower; None if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(place, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # no such file, or "max"
            pass
    return total


def _limit(resource: Any, kind: int, value: int) -> None:
    """Lower a limit; never raise it."""
    try:
        soft, hard = resource.getrlimit(kind)
        values = [limit for limit in (soft, hard, value) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(values), hard))
    except (ValueError, OSError):  # not supported by this system
        pass


def _status_bytes(name: str) -> int | None:
    """An entry of /proc/self/status in bytes, or None."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next((1024 * int(line.split()[1]) for line in status if line.startswith(f"{name}:")), None)
    except OSError:
        return None
