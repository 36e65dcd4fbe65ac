"""Phones that are missing, locked, full, lost or hostile, and programs that fail there: docs/faults.md, Devices."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lrexport.errors import DeviceError, Stopped
from lrexport.measure.targets.adb_client import connect
from lrexport.measure.targets.adb_folder import DeviceFolder
from tests.board import write_model
from tests.conftest import heed_ctrl_c
from tests.hostile.support import Command, listing
from tests.hostile.test_targets import ENDLESS, STRANGE
from tests.phone import FakePhone, write_script
from tests.phone_programs import FAKE_LITERT
from tests.waiting import until

TARGET = "adb://?runner=litert&program=program"


@pytest.fixture
def model(here: Path) -> str:
    """A file that LiteRT's fake program takes 40 ms for, and that program."""
    Path("model.tflite").write_bytes(b"\0\0\0\0TFL3".ljust(400, b"\0"))
    write_script(Path("program"), FAKE_LITERT)
    return "model.tflite"


def test_a_machine_without_adb_is_told_how_to_install_it(
    lrexport: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 4
    assert "adb is not installed on this machine" in done.err
    assert "apt-get install adb" in done.err


@pytest.mark.parametrize(
    ("serial", "states", "reason", "hint"),
    [
        ("", {}, "no device is connected", "USB debugging"),
        (
            "",
            {"A1": "device", "emulator-5554": "offline"},
            "several devices are connected: A1 (device), emulator-5554 (offline)",
            "adb://SERIAL?",
        ),
        ("B2", {"A1": "device"}, "device B2 is not connected; adb knows A1 (device)", "adb devices"),
        ("A1", {"A1": "unauthorized", "B2": "device"}, "device A1 has not authorised this computer", "Unlock it"),
        ("", {"A1": "offline"}, "device A1 is offline", "adb reconnect"),
        (
            "",
            {"A1": "no permissions (missing udev rules? user is in the plugdev group)"},
            "device A1 cannot be opened by this user",
            "udev",
        ),
        ("", {"A1": "recovery"}, "device A1 is in the state 'recovery': expected 'device'", "adb devices"),
        ("", {"\x1b[31mA1": "recovery"}, "device \\x1b[31mA1 is in the state 'recovery'", "adb devices"),
    ],
)
def test_a_phone_that_is_not_ready_is_explained_with_the_next_step(
    serial: str, states: dict[str, str], reason: str, hint: str, lrexport: Command, model: str, phone: FakePhone
) -> None:
    phone.states = states
    done = lrexport("bench", model, "--target", TARGET.replace("//", f"//{serial}"))
    assert done.code == 4
    assert reason in done.err
    assert hint in done.err
    assert phone.left() == []


def test_the_serial_in_the_environment_counts_as_for_adb_itself(
    lrexport: Command, model: str, phone: FakePhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone.states = {"A1": "device", "B2": "device"}
    monkeypatch.setenv("ANDROID_SERIAL", "C3")
    assert "device C3 is not connected" in lrexport("bench", model, "--target", TARGET).err
    monkeypatch.setenv("ANDROID_SERIAL", "B2")
    assert lrexport("bench", model, "--rounds", "10", "--target", TARGET).code == 0


@pytest.mark.parametrize(
    "target",
    [
        "adb://$(touch pwned)?runner=litert&program=program",
        "adb://A1;touch?runner=litert&program=program",
        "adb://-P?runner=litert&program=program",
        "adb://A1?runner=litert&program=program&cores=4;touch pwned",
        "adb://A1?runner=litert;touch&program=program",
    ],
)
def test_a_phone_that_would_be_an_option_or_a_command_is_refused_before_adb_is_called(
    target: str, lrexport: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(Path("bin/adb"), "touch called")
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    before = listing(Path())
    done = lrexport("bench", model, "--target", target)
    assert done.code == 2
    assert "invalid adb target" in done.err
    assert listing(Path()) == before


def test_files_programs_and_libraries_with_any_name_are_sent_and_none_is_run_as_a_command(
    lrexport: Command, model: str, here: Path, phone: FakePhone
) -> None:
    names = [name.replace(".onnx", ".tflite") for name in STRANGE]
    for name in names:
        shutil.copy(model, name)
    script = f'ls "$LD_LIBRARY_PATH" >{here}/seen\n{FAKE_LITERT}'
    program = write_script(Path("a 'program' $(touch pwned);touch pwned"), script)
    Path("libraries").mkdir()
    Path("libraries/lib $(touch pwned)'.so").write_bytes(b"x")
    before = listing(Path())
    target = f"adb://?runner=litert&program={program}&libraries=libraries"
    done = lrexport("bench", "--rounds", "10", "--target", target, "--", *names)
    assert done.code == 0
    assert Path("seen").read_text() == "lib $(touch pwned)'.so\n"
    Path("seen").unlink()
    assert listing(Path()) == before
    assert list(phone.folder.rglob("pwned")) == []
    assert phone.left() == []


def test_a_phone_that_is_unplugged_gives_a_partial_result_that_names_what_may_be_left(
    lrexport: Command, model: str, phone: FakePhone
) -> None:
    write_script(Path("program"), f"sleep 0.3\n{FAKE_LITERT}")
    phone.lose_after = 12
    done = lrexport("bench", model, *ENDLESS, "--target", TARGET)
    assert done.code == 4
    assert "partial" in done.out
    assert " of 1000000 rounds before the target was lost" in done.err
    assert "the device was lost" in done.err or "device PHONE1 was lost" in done.err
    assert "adb -s PHONE1 shell rm -rf /data/local/tmp/lrexport-" in done.err
    assert phone.left() == []  # its own shell has removed it
    assert phone.running() == []


@pytest.mark.parametrize("is_known", [True, False])
def test_a_phone_without_room_says_so_and_keeps_nothing(
    is_known: bool, lrexport: Command, model: str, phone: FakePhone
) -> None:
    if is_known:
        phone.has_program("df", "echo 'fs 1000 1000 0 100% /data'")
    else:
        phone.room = 100
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 4
    assert "has no space left" in done.err
    assert ("0 are free" in done.err) == is_known
    assert phone.left() == []


def test_a_program_for_another_processor_is_refused_before_it_is_sent(
    lrexport: Command, model: str, phone: FakePhone
) -> None:
    Path("program").write_bytes(arm64_program(b""))
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 3
    assert "program is a program for arm64, but the phone's ABI is x86_64" in done.err
    assert "NDK" in done.err
    assert not any("mkdir" in command for command in phone.commands)


def test_a_program_or_libraries_that_are_not_there_are_usage_errors(lrexport: Command, model: str, phone: FakePhone) -> None:
    done = lrexport("bench", model, "--target", TARGET.replace("=program", "=absent"))
    assert (done.code, "cannot read the program absent" in done.err) == (2, True)
    os.mkfifo("fifo")
    done = lrexport("bench", model, "--target", TARGET.replace("=program", "=fifo"))
    assert (done.code, "fifo is a FIFO; expected a plain file" in done.err) == (3, True)
    done = lrexport("bench", model, "--target", f"{TARGET}&libraries=.")
    assert (done.code, "has no shared libraries" in done.err) == (2, True)
    assert phone.left() == []


# Programs by what is wrong: their script, the exit code, and words of the message.
BROKEN = {
    "its interpreter is missing": ("#!/nowhere/sh\n", 4, "cannot run benchmark_model: "),
    "its libraries are missing": (
        "echo 'CANNOT LINK EXECUTABLE: library libomp.so not found'; exit 1",
        4,
        "library libomp.so",
    ),
    "it crashes": ("echo loading; kill -SEGV $$", 3, "benchmark_model crashes on it (SIGSEGV)"),
    "it fails": ("echo 'Failed to initialise the interpreter'; exit 1", 3, "fails on it with exit status 1: Failed to"),
    "it is another program": ("echo 'Hello'; echo '\033[31mworld'", 4, "It printed: Hello | \\x1b[31mworld"),
    "it prints nothing": ("exit 0", 4, "It printed: nothing"),
    "it hangs": ("sleep 60", 3, "one invocation of benchmark_model takes more than 1 s"),
    "it floods its output": ("yes", 3, "floods its output"),
    "it removes its folder": ('rm -rf "$PWD"', 4, "cannot be read"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_program_that_fails_is_named_and_ended_and_nothing_is_left(
    what: str, lrexport: Command, model: str, phone: FakePhone
) -> None:
    script, code, words = BROKEN[what]
    write_script(Path("program"), script)
    if script.startswith("#!"):
        Path("program").write_text(script)
    done = lrexport("bench", model, "--target", TARGET, *(["--timeout", "1"] if what == "it hangs" else []))
    assert done.code == code
    assert words in done.err
    assert done.out == ""
    assert phone.left() == []
    assert until(lambda: not phone.running(), 5)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["model.onnx"], "model.onnx is not a file for benchmark_model: expected .tflite"),
        (["model.tflite", "--profile"], "cannot measure time per operator"),
        (["model.tflite", "--shape", "x=1,3,8,8"], "takes the sizes that the file has"),
        (["model.tflite", "--input", "inputs.npz"], "benchmark_model makes its own inputs"),
    ],
)
def test_what_a_program_cannot_do_is_refused_before_the_phone_is_asked(
    arguments: list[str], reason: str, lrexport: Command, model: str, phone: FakePhone
) -> None:
    import numpy

    write_model(Path("model.onnx"))
    numpy.savez("inputs.npz", x=numpy.zeros(3))
    done = lrexport("bench", *arguments, "--target", TARGET)
    assert done.code == 2
    assert reason in done.err
    assert phone.commands == []


def test_a_latency_that_a_program_cannot_resolve_is_refused(lrexport: Command, model: str, phone: FakePhone) -> None:
    write_script(Path("program"), f"size=10; {FAKE_LITERT.replace('size=', 'unused=')}")
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 3
    assert "benchmark_model prints steps of 0.001 ms: too coarse for a latency of 0.01 ms" in done.err
    assert phone.left() == []


def test_a_phone_that_floods_its_output_is_given_up(lrexport: Command, model: str, phone: FakePhone) -> None:
    phone.has_program("uname", "yes | head -c 3000000")
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 4
    assert "the device floods its output with more than 1,048,576 bytes" in done.err


def test_what_a_phone_says_about_itself_is_bounded_and_escaped(lrexport: Command, model: str, phone: FakePhone) -> None:
    phone.has_program("getprop", "printf '\\033[31m'; yes | tr -d '\\n'")
    for name in ("dumpsys", "taskset"):
        phone.has_program(name, "exit 1")
    shutil.rmtree(phone.folder / "sys")
    done = lrexport("bench", model, "--rounds", "10", "--target", TARGET)
    assert done.code == 0
    assert "\\x1b[31myyyy" in done.out
    assert "y" * 101 not in done.out
    assert "\x1b" not in done.out + done.err
    assert phone.left() == []


def test_a_phone_that_does_not_answer_like_android_is_refused(lrexport: Command, model: str, phone: FakePhone) -> None:
    phone.has_program("uname", "kill -9 $PPID")
    done = lrexport("bench", model, "--target", TARGET)
    assert done.code == 4
    assert "the device's shell does not answer as Android's does" in done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_measurement_that_is_stopped_or_killed_leaves_nothing_on_the_phone(
    number: signal.Signals, code: int, model: str, phone: FakePhone
) -> None:
    write_script(Path("program"), "sleep 60")
    command = [sys.executable, "-m", "lrexport", "bench", model, "--target", TARGET]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    assert until(lambda: list(phone.temporary.glob("*/pid")), 20)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (code, False)
    assert phone.left() == []
    assert until(lambda: not phone.running(), 5)


def test_a_stop_while_the_phone_is_gone_names_what_may_be_left(phone: FakePhone) -> None:
    folder = DeviceFolder(connect(None))
    with pytest.raises(Stopped) as caught:
        _stop_in(folder, phone)
    assert caught.value.exit_code == 130
    assert f"stopped; {folder.path} may be left on device PHONE1" in caught.value.message
    assert f"adb -s PHONE1 shell rm -rf {folder.path}" in str(caught.value.hint)


def _stop_in(folder: DeviceFolder, phone: FakePhone) -> None:
    with folder:
        phone.unplug()
        raise KeyboardInterrupt


def test_a_folder_that_cannot_be_removed_is_an_error(phone: FakePhone) -> None:
    with pytest.raises(DeviceError) as caught, DeviceFolder(connect(None)) as folder:
        phone.has_program("rm", "echo 'rm: Permission denied' >&2; exit 1")
    (phone.folder / "bin/rm").unlink()
    assert f"{folder.path} is left on device PHONE1" in caught.value.message


QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.mark.skipif(QEMU is None, reason="needs qemu-aarch64 (Debian: apt-get install qemu-user)")
def test_a_program_for_arm64_runs_on_a_phone_of_that_kind(lrexport: Command, model: str, phone: FakePhone) -> None:
    assert QEMU is not None
    phone.emulator = QEMU
    phone.has_program("getprop", '[ "$1" = ro.product.cpu.abi ] && echo arm64-v8a')
    lines = (
        "INFO: count=5 first=41000 curr=40000 min=39000 max=41000 avg=40000 std=9\n"
        "INFO: Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 41000, Inference (avg): 40000\n"
    )
    Path("program").write_bytes(arm64_program(lines.encode()))
    done = lrexport("bench", model, "--rounds", "10", "--target", TARGET)
    assert done.code == 0
    assert "40.0 ms" in done.out
    assert phone.left() == []


def arm64_program(text: bytes) -> bytes:
    """A static Linux program for arm64 that writes ``text`` to stdout and ends: an ELF header and eight instructions."""
    base, header = 0x400000, 64 + 56
    set_x0, set_x2, set_x8 = (0xD2800000 | register for register in (0, 2, 8))
    call, to_text = 0xD4000001, 0x10000001 | (7 * 4 >> 2) << 5  # the text is seven instructions behind this one
    code = struct.pack(
        "<8I", set_x0 | 1 << 5, to_text, set_x2 | len(text) << 5, set_x8 | 64 << 5, call, set_x0, set_x8 | 93 << 5, call
    )
    size = header + len(code) + len(text)
    elf = struct.pack(
        "<4s12BHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, *[0] * 9, 2, 183, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return elf + segment + code + text
