"""Whether a program is for a phone's processor, by its ELF header."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import InputError

_MAGIC = b"\x7fELF"
_HEADER_BYTES = 20
# e_machine of the ABI's programs, by the names in ro.product.cpu.abi; 64-bit phones may run 32-bit programs too.
_MACHINES = {
    "arm64-v8a": ("arm64", "arm"),
    "armeabi-v7a": ("arm",),
    "x86_64": ("x86-64", "x86"),
    "x86": ("x86",),
    "riscv64": ("riscv64",),
}
_NAMES = {3: "x86", 40: "arm", 62: "x86-64", 183: "arm64", 243: "riscv64"}


def check_machine(path: Path, abi: str) -> None:
    """Raise InputError for a program that is for another processor; what is not ELF, or for an unknown ABI, passes."""
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if header[:4] != _MAGIC or len(header) < _HEADER_BYTES or abi not in _MACHINES:
        return
    number = int.from_bytes(header[18:20], "little")
    machine = _NAMES.get(number, f"machine {number}")
    if machine not in _MACHINES[abi]:
        raise InputError(
            f"{path} is a program for {machine}, but the phone's ABI is {abi}", f"Build it with Android's NDK for {abi}."
        )
