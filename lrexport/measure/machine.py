"""The current state of the machine that measures. Self-contained: it is sent to devices with the runner."""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import glob
import os
import platform
from typing import Any

from lrexport.measure.runtimes import base

JsonObject = dict[str, Any]

# Instruction sets that decide a runtime's kernels.
ISA = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
# Reports of a Raspberry Pi's firmware, by bit.
_FIRMWARE = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")


def environment(runtime: str = base.DEFAULT) -> JsonObject:
    """The machine's state: processor and instruction sets, cores, governor, throttling, temperature, versions.

    The version of ONNX Runtime is under ``onnxruntime``. Of another runtime there are ``runtime``, ``runtime_version`` and
    ``precision``, what it is asked to compute in.
    """
    facts: JsonObject = {
        "cpu": cpu_model(),
        "isa": isa(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name, value in (
        ("governor", _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("throttled", _throttle_count()),
        ("slowed", _slowed()),
        ("celsius", _celsius()),
    ):
        if value not in (None, []):
            facts[name] = value
    chosen = base.runtime(runtime)
    try:
        version = chosen.version()
    except Exception:  # missing or unusable here: reported when it is needed
        return facts
    if runtime == base.DEFAULT:
        return {**facts, base.DEFAULT: version}
    return {**facts, "runtime": runtime, "runtime_version": version, "precision": chosen.precision}


def cpu_model() -> str:
    """The processor's name by the system."""
    for key in ("model name", "Hardware", "Model"):
        if model := _cpuinfo(key):
            return model
    name = _line("/proc/device-tree/model")
    return name.strip("\0") if name else platform.processor() or platform.machine()


def isa() -> list[str]:
    """Instruction sets beyond the architecture's base that decide a runtime's kernels."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for name in ISA if name in flags]


def _cpuinfo(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return None


def _throttle_count() -> int | None:
    """How often the processor's cores have throttled for heat since boot, on x86."""
    lines = [_line(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    counts = [int(value) for value in lines if value]
    return sum(counts) if counts else None


def _slowed() -> list[str]:
    """What slows the processor down now: cooling by a lower frequency, or a Raspberry Pi's firmware."""
    reasons = []
    for device in glob.glob("/sys/class/thermal/cooling_device*"):
        kind, state = _line(device + "/type") or "", _line(device + "/cur_state") or "0"
        if ("cpufreq" in kind or kind == "Processor") and state.isdigit() and int(state):
            reasons.append(f"cooling by frequency, step {state}")
    firmware = int(_line("/sys/devices/platform/soc/soc:firmware/get_throttled") or "0", 16)
    return sorted(set(reasons)) + [name for bit, name in enumerate(_FIRMWARE) if firmware >> bit & 1]


def _celsius() -> float | None:
    """The temperature of the hottest thermal zone."""
    lines = [_line(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    degrees = [int(value) / 1e3 for value in lines if value and value.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def _line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip() or None
    except OSError:
        return None
