"""Code that files of somebody else name: docs/faults.md 48."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lrexport as package
from lrexport.errors import InputError
from lrexport.trust import consent, store
from tests.hostile.support import DATA, TINY, Command, listing, write_module

Change = Callable[[dict[str, Any]], None]
EXPORT = ("onnx", "run", "--rounds", "0")
QUICK = ("--device", "cpu", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--dense-epochs", "0")


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing was agreed to yet."""
    folder = tmp_path_factory.mktemp("state") / "lrexport"
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(folder))
    return folder


def edit(run: Path, change: Change) -> None:
    value = json.loads((run / "run.json").read_text())
    change(value)
    (run / "run.json").write_text(json.dumps(value))


def name_command(record: dict[str, Any]) -> None:
    record["model"].update(source="os:system", kwargs={"command": "touch ran"})


def name_module_beside(record: dict[str, Any]) -> None:
    write_module("beside", f"open('ran', 'w').close()\n{TINY}".replace("\n    ", "\n"))
    record["model"]["source"] = "beside:make"


def name_data(record: dict[str, Any]) -> None:
    write_module("pictures", f"open('ran', 'w').close()\n{DATA}".replace("\n    ", "\n"))
    record["model"].update(source="resnet20", kwargs={}, input_shape=[3, 8, 8])
    record["data"] = {
        "source": "pictures:fitting",
        "classes": 10,
        "train": 36,
        "heldout": 4,
        "test": 20,
        "mean": [0],
        "std": [1],
    }


CHANGES = {"a command": name_command, "a module beside the run": name_module_beside}
COMMANDS: dict[str, tuple[str, ...]] = {
    "onnx": EXPORT,
    "compress": ("compress", "run", "--macs", "0.5", "-o", "out"),
    "compress in place": ("compress", "run", "--macs", "0.5"),
    "a dry run": ("compress", "run", "--macs", "0.5", "--dry-run"),
    "a teacher": ("compress", "resnet20", "--data", "digits", "--teacher", "run", "--macs", "0.5", "-o", "out"),
    "a teacher of training": ("train", "resnet20", "--data", "digits", "--teacher", "run", "-o", "out"),
    "a sweep": ("sweep", "run", "--data", "digits", "--trials", "1", "-o", "out"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_received_record_names_does_not_run(lrexport: Command, finished: Path, command: str, what: str) -> None:
    edit(finished, CHANGES[what])
    before = listing(finished)
    done = lrexport(*COMMANDS[command])
    assert done.code == 3
    assert f"{finished}/run.json names code that would run as MODEL: " in done.err
    assert ("os:system(command='touch ran'), from " if what == "a command" else "beside:make(), from ") in done.err
    assert "--trust-code (in Python: trust_code=True)" in done.err
    assert not Path("ran").exists()
    assert listing(finished) == before
    assert not Path("out").exists()


def test_data_that_a_received_record_names_is_not_imported(lrexport: Command, finished: Path) -> None:
    edit(finished, name_data)
    for command in ("onnx", "compress", "a dry run"):
        done = lrexport(*COMMANDS[command])
        assert done.code == 3
        assert "names code that would run as --data: pictures:fitting()" in done.err
        assert not Path("ran").exists()


def test_load_runs_what_a_record_names_only_where_it_is_trusted(lrexport: Command, finished: Path) -> None:
    edit(finished, name_module_beside)
    with consent.session():
        with pytest.raises(InputError, match="names code that would run as MODEL: beside:make"):
            package.load(finished)
        assert not Path("ran").exists()
        package.load(finished, trust_code=True)
        assert Path("ran").exists()
        package.load(finished)  # what was agreed to once


def test_a_run_that_was_made_here_is_followed_without_a_word(lrexport: Command) -> None:
    write_module("pictures", DATA)
    made = lrexport("compress", "tiny:make", "--data", "pictures:fitting", "--macs", "0.6", "-o", "mine", *QUICK)
    assert made.code == 0, made.err
    for command in (("onnx", "mine", "--rounds", "0"), ("compress", "mine", "--macs", "0.5", "-o", "again", *QUICK[:2])):
        done = lrexport(*command)
        assert done.code == 0, done.err
    package.load("mine")


def test_trust_is_given_for_one_call_and_for_what_it_ran(lrexport: Command, finished: Path) -> None:
    edit(finished, name_module_beside)
    assert lrexport(*EXPORT, "--trust-code").code == 0
    assert lrexport(*EXPORT).code == 0
    edit(finished, name_command)
    assert lrexport(*EXPORT).code == 3


def test_the_same_path_in_another_folder_with_other_arguments_or_an_unknown_one_is_another_matter(
    lrexport: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "mine", "--device", "cpu").code == 0
    assert lrexport("onnx", "run", "--rounds", "0").code == 0  # the user's own tiny
    edit(finished, lambda record: record["model"].update(kwargs={"depth": 3}))
    assert lrexport(*EXPORT).code == 3
    edit(finished, lambda record: record["model"].update(kwargs={}))
    elsewhere = tmp_path / "received"
    elsewhere.mkdir()
    finished.rename(elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    write_module("tiny", f"open('ran', 'w').close()\n{TINY}".replace("\n    ", "\n"))
    monkeypatch.delitem(sys.modules, "tiny")
    done = lrexport(*EXPORT)
    assert done.code == 3
    assert f"from {elsewhere / 'tiny.py'}" in done.err
    assert not Path("ran").exists()


def test_a_number_of_classes_that_the_data_decided_is_no_other_argument() -> None:
    code = consent.Code("MODEL", "nets:make", "/nets.py", {"width": 2})
    assert consent.Code("MODEL", "nets:make", "/nets.py", {"width": 2, "num_classes": 7}).key == code.key
    for kwargs in ({"width": 3}, {"width": 2, "num_classes": "7"}, {"width": 2.5}, {}):
        assert consent.Code("MODEL", "nets:make", "/nets.py", kwargs).key != code.key
    assert consent.Code("MODEL", "nets:make", "/other/nets.py", {"width": 2}).key != code.key
    assert consent.Code("MODEL", "nets:other", "/nets.py", {"width": 2}).key != code.key


def answer(command: tuple[str, ...], typed: bytes) -> tuple[int, str]:
    """Run a command on a terminal and type; its exit code and what the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "lrexport", *command])
    shown = b""
    try:
        while b"[y/N]" not in shown:
            shown += os.read(terminal, 1 << 16)
        os.write(terminal, typed)
        while chunk := os.read(terminal, 1 << 16):
            shown += chunk
    except OSError:  # Linux's word for the end
        pass
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


def test_on_a_terminal_the_user_is_asked_and_shown_what_would_run(finished: Path) -> None:
    edit(finished, name_module_beside)
    code, shown = answer(EXPORT, b"n\n")
    assert code == 3
    assert "beside:make()" in shown
    assert str(Path("beside.py").resolve()) in shown.replace("\r\n", "")
    assert not Path("ran").exists()
    assert answer(EXPORT, b"\x03")[0] == 130
    assert not Path("ran").exists()
    assert answer(EXPORT, b"y\n")[0] == 0
    assert Path("ran").exists()
    again = subprocess.run([sys.executable, "-m", "lrexport", *EXPORT], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


def test_a_question_shows_arguments_whole_and_harmlessly(finished: Path, lrexport: Command) -> None:
    edit(finished, lambda record: record["model"].update(source="os:system", kwargs={"command": "\x1b[2Jtrue\n::error::x"}))
    code, shown = answer(EXPORT, b"n\n")
    assert code == 3
    assert "\x1b[2J" not in shown
    edit(finished, lambda record: record["model"].update(kwargs={"command": " " * 5000 + "; touch ran"}))
    done = lrexport(*EXPORT)  # nobody can look at that on a line
    assert done.code == 3
    assert not Path("ran").exists()


def test_what_is_remembered_is_the_users_alone(state: Path, lrexport: Command, finished: Path) -> None:
    assert lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "mine", "--device", "cpu").code == 0
    assert state.stat().st_mode & 0o777 == 0o700
    (kept,) = state.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert lrexport(*EXPORT).code == 0
    kept.chmod(0o666)  # anybody could have written it
    assert lrexport(*EXPORT).code == 3


@pytest.mark.parametrize("obstacle", ["a file for the folder", "a link", "a folder for the file", "nonsense"])
def test_what_cannot_be_remembered_is_not_and_nothing_fails(state: Path, lrexport: Command, obstacle: str) -> None:
    kept, elsewhere = state / "trusted-code.jsonl", state.parent / "elsewhere"
    elsewhere.write_text("mine\n")
    if obstacle == "a file for the folder":
        state.write_text("")
    else:
        state.mkdir()
        if obstacle == "a link":
            kept.symlink_to(elsewhere)
        elif obstacle == "a folder for the file":
            kept.mkdir()
        else:
            kept.write_text('\n3\n[]\n{"key": []}\n\udcff{'.encode(errors="surrogateescape").decode(errors="replace"))
            kept.chmod(0o600)
    made = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "mine", "--device", "cpu")
    assert made.code == 0, made.err
    assert lrexport("onnx", "mine", "--rounds", "0").code == (0 if obstacle == "nonsense" else 3)
    assert lrexport("onnx", "mine", "--rounds", "0", "--trust-code").code == 0
    assert elsewhere.read_text() == "mine\n"


def test_finding_out_where_code_would_come_from_runs_none_of_it(here: Path, lrexport: Command, finished: Path) -> None:
    Path("outer/inner").mkdir(parents=True)
    for folder in ("outer", "outer/inner"):
        Path(folder, "__init__.py").write_text("open('ran', 'w').close()\n")
    Path("outer/inner/nets.py").write_text(TINY.replace("\n    ", "\n"))
    edit(finished, lambda record: record["model"].update(source="outer.inner.nets:make"))
    done = lrexport(*EXPORT)
    assert done.code == 3
    assert f"from {here / 'outer/inner/nets.py'}" in done.err
    assert not Path("ran").exists()


def test_a_sweep_in_a_received_folder_runs_only_what_the_user_names(lrexport: Command) -> None:
    write_module("pictures", DATA)
    command = ("sweep", "tiny:make", "--data", "pictures:fitting", "--vary", "macs=0.5,0.7", "-o", "sweep", *QUICK[:-2])
    assert lrexport(*command, "--trials", "1", "--dense-epochs", "0").code == 0
    for run in Path("sweep/stages").iterdir():
        edit(run, name_command)
    done = lrexport(*command, "--trials", "2", "--dense-epochs", "0")
    assert "names code that would run as MODEL: os:system(command='touch ran')" in done.err + done.out
    assert not Path("ran").exists()
