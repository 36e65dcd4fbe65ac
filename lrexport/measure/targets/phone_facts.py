"""What a phone is, and its state: model, Android, processor, cores, clocks, temperature. Read by one script in its shell.

Everything is optional: Android hides more of it from adb's user with every version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrexport.errors import DeviceError, UsageError
from lrexport.measure.machine import ISA

_PROPERTIES = (
    *("ro.product.manufacturer", "ro.product.model", "ro.build.version.release", "ro.build.version.sdk"),
    *("ro.soc.manufacturer", "ro.soc.model", "ro.board.platform", "ro.hardware", "ro.product.cpu.abi"),
)
_MOST_TEXT, _MOST_CORES, _HOTTEST = 100, 1024, 150.0
_SCRIPT = f"""
say() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
for name in {" ".join(_PROPERTIES)}; do say $name "$(getprop $name | head -c {_MOST_TEXT})"; done
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  for name in cpuinfo_max_freq scaling_max_freq scaling_cur_freq scaling_governor; do
    value=$(cat "$core/cpufreq/$name" 2>/dev/null) && say "core.${{core##*/cpu}}.$name" "$value"
  done
done
for zone in /sys/class/thermal/thermal_zone*; do
  value=$(cat "$zone/temp" 2>/dev/null) && say zone "$value"
done
say features "$(grep -m 1 Features /proc/cpuinfo)"
say machine "$(uname -m)"
say battery "$(dumpsys battery 2>/dev/null | grep -m 1 temperature | head -c {_MOST_TEXT})"
say taskset "$(command -v taskset)"
say free "$(df -k /data/local/tmp | tail -n 1)"
"""


@dataclass(frozen=True)
class Core:
    """A core: its clocks in kHz, and its governor. ``limit`` below ``fastest``: heat or a setting holds it back."""

    number: int
    fastest: int = 0
    limit: int = 0
    now: int = 0
    governor: str = ""


@dataclass(frozen=True)
class PhoneFacts:
    """What :data:`_SCRIPT` found; "" and 0 are unknown."""

    properties: Mapping[str, str]
    cores: tuple[Core, ...]
    celsius: float | None
    battery: float | None
    isa: tuple[str, ...]
    machine: str
    has_taskset: bool
    free: int | None

    @property
    def abi(self) -> str:
        return self.properties.get("ro.product.cpu.abi", "")

    @property
    def title(self) -> str:
        """``Google Tensor G3 (Google Pixel 8)``."""
        maker, model = (self.properties.get(f"ro.product.{name}", "") for name in ("manufacturer", "model"))
        chip = " ".join(filter(None, (self.properties.get(f"ro.soc.{name}", "") for name in ("manufacturer", "model"))))
        chip = chip or self.properties.get("ro.board.platform") or self.properties.get("ro.hardware") or "unknown processor"
        device = model if model.startswith(maker) else f"{maker} {model}"
        return f"{chip} ({device.strip() or 'unknown device'})"

    def environment(self, chosen: Sequence[int], pinned: str | None) -> dict[str, Any]:
        """The record's entries about the phone, when the ``chosen`` cores are used."""
        release, level = (self.properties.get(f"ro.build.version.{name}", "") for name in ("release", "sdk"))
        used = [core for core in self.cores if core.number in chosen]
        facts: dict[str, Any] = {
            "cpu": self.title,
            "isa": list(self.isa),
            "cores": len(chosen) or len(self.cores),
            "system": f"Android {release or '?'} {self.machine}".strip(),
            "android_api": level,
            "pinned": pinned,
            "clocks_mhz": {str(core.number): core.now / 1e3 for core in self.cores if core.now},
            "celsius": self.celsius,
            "battery_celsius": self.battery,
            "governor": used[0].governor if used else None,
            "slowed": sorted({_held_back(core) for core in used if 0 < core.limit < core.fastest}),
        }
        return {name: value for name, value in facts.items() if value not in (None, "", [], {})}


def read_facts(shell: Any) -> PhoneFacts:
    """The phone's facts; ``shell`` runs a script there. Raises DeviceError."""
    done = shell(_SCRIPT)
    found: dict[str, list[str]] = {}
    for line in done.out.splitlines():
        name, tab, value = line.partition("\t")
        if tab:
            found.setdefault(name, []).append(value.strip()[:_MOST_TEXT])
    if "machine" not in found:
        raise DeviceError(
            "the device's shell does not answer as Android's does", "Check the device by hand: adb shell uname -m"
        )
    one = {name: values[0] for name, values in found.items()}
    return PhoneFacts(
        {name: one.get(name, "") for name in _PROPERTIES},
        _cores(one),
        max((degrees for degrees in map(_degrees, found.get("zone", ())) if degrees is not None), default=None),
        _battery(one.get("battery", "")),
        tuple(name for name in ISA if name in one.get("features", "").split()),
        one["machine"],
        bool(one.get("taskset")),
        _free(one.get("free", "")),
    )


def chosen_cores(cores: Sequence[Core], words: str, threads: int) -> tuple[int, ...]:
    """The numbers of the cores that ``words`` name: ``big``, ``little``, ``all`` or a list such as 4-7.

    ``big`` are the fastest cores, and the next ones until there is one for each thread; ``little`` the other way round.
    Empty if the cores or their clocks are unknown. Raises UsageError for cores that the phone does not have.
    """
    known = [core.number for core in cores]
    if words == "all":
        return tuple(known)
    if words not in ("big", "little"):
        numbers = listed(words)
        missing = [number for number in numbers if number not in known]
        if missing:
            raise UsageError(f"the device has no core {missing[0]}: expected some of {', '.join(map(str, known))}")
        return numbers
    clocks = sorted({core.fastest for core in cores if core.fastest}, reverse=words == "big")
    chosen: list[int] = []
    for clock in clocks:
        chosen += [core.number for core in cores if core.fastest == clock]
        if len(chosen) >= max(1, threads):
            break
    return tuple(sorted(chosen))


def listed(text: str) -> tuple[int, ...]:
    """The numbers in ``4-7`` or ``0,2,4-6``. Raises ValueError."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"invalid list of cores {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _MOST_CORES:
            raise ValueError(f"invalid list of cores {text!r}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def mask(cores: Sequence[int]) -> str:
    """The cores as taskset takes them on Android and on Linux: hexadecimal, without 0x."""
    return f"{sum(1 << core for core in cores):x}"


def ranges(cores: Sequence[int]) -> str:
    """``4-7`` for 4, 5, 6 and 7."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _held_back(core: Core) -> str:
    return f"clock limited to {core.limit / 1e6:.2f} of {core.fastest / 1e6:.2f} GHz"


def _cores(one: Mapping[str, str]) -> tuple[Core, ...]:
    numbers = {int(name.split(".")[1]) for name in one if re.fullmatch(r"core\.\d{1,4}\.\w+", name)}

    def kilohertz(number: int, name: str) -> int:
        value = one.get(f"core.{number}.{name}", "")
        return int(value) if re.fullmatch(r"\d{1,9}", value, re.ASCII) else 0

    return tuple(
        Core(
            number,
            kilohertz(number, "cpuinfo_max_freq"),
            kilohertz(number, "scaling_max_freq"),
            kilohertz(number, "scaling_cur_freq"),
            one.get(f"core.{number}.scaling_governor", ""),
        )
        for number in sorted(numbers)
    )


def _degrees(text: str) -> float | None:
    """A zone's temperature. Zones report millidegrees, some degrees; unused ones nonsense."""
    if not re.fullmatch(r"-?\d{1,7}", text, re.ASCII):
        return None
    value = int(text) / 1e3 if abs(int(text)) > _HOTTEST else float(text)
    return value if 0 < value <= _HOTTEST else None


def _battery(text: str) -> float | None:
    """From ``  temperature: 312``, in tenths of a degree."""
    match = re.fullmatch(r"temperature: (\d{1,4})", text.strip(), re.ASCII)
    return int(match[1]) / 10 if match else None


def _free(text: str) -> int | None:
    """Free bytes, from the last line of ``df -k``: filesystem, kilobytes, used, available, …."""
    words = text.split()
    return 1024 * int(words[3]) if len(words) > 4 and words[3].isascii() and words[3].isdigit() else None
