"""Code named by files from somebody else: docs/faults.md, Configuration and foreign code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lrexport as package
from lrexport.errors import InputError
from lrexport.trust import consent, store
from tests.budget.support import sample  # noqa: F401
from tests.conftest import heed_ctrl_c
from tests.hostile.support import DATA, TINY, Command, listing, write_module

Change = Callable[[dict[str, Any]], None]
EXPORT = ("onnx", "run", "--rounds", "0")
LOOK = ("compress", "run", "--macs", "0.5", "--dry-run", "--device", "cpu")  # loads the network, and writes nothing
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


def name_task(record: dict[str, Any]) -> None:
    name_data(record)
    record["data"]["source"] = "digits"
    record["config"]["task"] = "pictures:task"


def test_a_task_that_a_received_record_names_is_not_imported(lrexport: Command, finished: Path) -> None:
    edit(finished, name_task)
    for command in ("onnx", "compress", "a dry run"):
        done = lrexport(*COMMANDS[command])
        assert done.code == 3
        assert "names code that would run as --task: pictures:task()" in done.err
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
    done = lrexport("onnx", "mine", "--rounds", "0")
    assert done.code == 0, done.err
    package.load("mine")


def test_trust_is_given_for_one_call_and_for_what_it_ran(lrexport: Command, finished: Path) -> None:
    edit(finished, name_module_beside)
    assert lrexport(*LOOK, "--trust-code").code == 0
    assert lrexport(*LOOK).code == 0
    edit(finished, name_command)
    assert lrexport(*LOOK).code == 3


def test_the_same_path_in_another_folder_with_other_arguments_or_an_unknown_one_is_another_matter(
    lrexport: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "mine", "--device", "cpu").code == 0
    assert lrexport(*LOOK).code == 0  # the user's own tiny
    edit(finished, lambda record: record["model"].update(kwargs={"depth": 3}))
    assert lrexport(*LOOK).code == 3
    edit(finished, lambda record: record["model"].update(kwargs={}))
    elsewhere = tmp_path / "received"
    elsewhere.mkdir()
    finished.rename(elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    write_module("tiny", f"open('ran', 'w').close()\n{TINY}".replace("\n    ", "\n"))
    monkeypatch.delitem(sys.modules, "tiny")
    done = lrexport(*LOOK)
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
        heed_ctrl_c()
        os.execv(sys.executable, [sys.executable, "-m", "lrexport", *command])
    shown = b""
    try:
        while b"[y/N]" not in shown:
            assert select.select([terminal], [], [], 120)[0], shown
            shown += os.read(terminal, 1 << 16)
        os.write(terminal, typed)
        with contextlib.suppress(OSError):  # Linux's word for the end
            while True:
                if select.select([terminal], [], [], 5)[0]:
                    shown += os.read(terminal, 1 << 16)
                else:  # Python does not notice a Ctrl-C that comes in the moment before it waits for a line
                    os.write(terminal, typed)
        status = os.waitpid(pid, 0)[1]  # before the terminal hangs up, which would kill a process that is about to end
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


def test_on_a_terminal_the_user_is_asked_and_shown_what_would_run(lrexport: Command, finished: Path) -> None:
    edit(finished, name_module_beside)
    code, shown = answer(EXPORT, b"n\n")
    assert code == 3
    assert "beside:make()" in shown
    assert str(Path("beside.py").resolve()) in shown.replace("\r\n", "")
    assert not Path("ran").exists()
    assert answer(EXPORT, b"\x03")[0] == 130
    assert not Path("ran").exists()
    assert answer(LOOK, b"y\n")[0] == 0
    assert Path("ran").exists()
    assert lrexport(*LOOK).code == 0  # and never again


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
    assert lrexport(*LOOK).code == 0
    kept.chmod(0o666)  # anybody could have written it
    assert lrexport(*LOOK).code == 3


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
    assert lrexport(*LOOK[:1], "mine", *LOOK[2:]).code == (0 if obstacle == "nonsense" else 3)
    assert lrexport(*LOOK[:1], "mine", *LOOK[2:], "--trust-code").code == 0
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


@pytest.mark.slow
def test_a_sweep_in_a_received_folder_runs_only_what_the_user_names(lrexport: Command) -> None:
    write_module("pictures", DATA)
    command = ("sweep", "tiny:make", "--data", "pictures:fitting", "--vary", "macs=0.5,0.7", "-o", "sweep", *QUICK[:-2])
    assert lrexport(*command, "--trials", "1", "--dense-epochs", "0").code == 0
    for run in Path("sweep/stages").iterdir():
        edit(run, name_command)
    done = lrexport(*command, "--trials", "2", "--dense-epochs", "0")
    assert "names code that would run as MODEL: os:system(command='touch ran')" in done.err + done.out
    assert not Path("ran").exists()


ESCAPES = (
    "../victim.onnx",
    "/tmp/victim.onnx",
    "..",
    ".",
    "",
    "a/../../victim.onnx",
    "sub\\..\\victim.onnx",
    "C:victim.onnx",
)


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize(
    "command", [LOOK, EXPORT, ("bench", "run"), ("inspect", "run"), ("report", "run")], ids=lambda c: c[0]
)
def test_a_record_names_no_file_outside_of_its_run(
    lrexport: Command, finished: Path, name: str, command: tuple[str, ...]
) -> None:
    Path("victim.onnx").write_text("precious")
    edit(finished, lambda record: record["files"].update({name: {"sha256": "0", "bytes": 8}}))
    before = listing(Path())
    done = lrexport(*command)
    assert done.code == 3
    assert "is not the name of a file in the run's folder" in done.err
    assert listing(Path()) == before


def test_a_sweeps_storage_names_no_folder_to_remove(here: Path) -> None:
    from lrexport.sweep.locks import Process
    from lrexport.sweep.storage import open_storage
    from lrexport.sweep.study import Book
    from tests.sweep.test_study import request

    Path("precious").mkdir()
    Path("precious/work.txt").write_text("mine")
    Path("process-of-mine.lock").write_text("mine")
    sweep = here / "sweep"
    sweep.mkdir()
    with Process(sweep) as process:
        book = Book(request(2), sweep, open_storage(None, sweep), "s", process)
        book.bind()
        for run, holder in (("../precious", "0" * 12), (str(here / "precious"), "../../process-of-mine")):
            trial = book._study.ask()
            for key, value in (("run", run), ("process", holder), ("place", process.place), ("host", "x")):
                trial.set_user_attr(key, value)
            book._revive()
    assert Path("precious/work.txt").read_text() == "mine"
    assert Path("process-of-mine.lock").read_text() == "mine"


@pytest.mark.parametrize("weights", ["IMAGENET1K_V9", "__class__", "resnet18", 3, ["DEFAULT"], {"a": 1}])
def test_weights_that_torchvision_does_not_have_are_refused(lrexport: Command, finished: Path, weights: object) -> None:
    edit(finished, lambda record: record["model"].update(source="torchvision:resnet18", kwargs={"weights": weights}))
    done = lrexport(*LOOK)
    assert done.code == 3
    assert "run/run.json: torchvision has no weights" in done.err


def test_nothing_is_fetched_for_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from lrexport.networks.building import from_record
    from lrexport.runs.sources import ModelSource

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("weights were fetched"))
    kwargs = {"weights_backbone": "DEFAULT", "weights": None}
    source = ModelSource(source="torchvision:fcn_resnet50", kwargs=kwargs, input_shape=(3, 32, 32))
    from_record(source, Path("run.json")).build()


SHADOWS = (
    "numpy",
    "onnx",
    "onnxruntime",
    "torch",
    "click",
    "rich",
    "json",
    "difflib",
    "safetensors",
    "pydantic",
    "z3",
    "tests",
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("check", "run"), id="check run"),
        pytest.param(("inspect", "model.onnx"), id="inspect model.onnx", marks=pytest.mark.slow),
        pytest.param(("bench", "model.onnx", "--rounds", "10"), id="bench model.onnx", marks=pytest.mark.slow),
        pytest.param(("inspect", "run"), id="inspect run"),
    ],
)
@pytest.mark.usefixtures("sample")
def test_modules_of_a_received_folder_do_not_run(command: tuple[str, ...]) -> None:
    shutil.copy("run/model.onnx", "model.onnx")
    for name in SHADOWS:
        Path(f"{name}.py").write_text(f"open({str(Path('ran').resolve())!r}, 'w').close()\nraise SystemExit(77)\n")
    for start in ([sys.executable, "-m", "lrexport"], [str(Path(sys.executable).with_name("lrexport"))]):
        done = subprocess.run([*start, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not Path("ran").exists()


@pytest.mark.slow
def test_a_module_of_a_library_opens_no_folder_to_other_imports(here: Path) -> None:
    code = (
        "import sys; sys.path = [place for place in sys.path if place]\n"
        "from lrexport.networks.building import import_callable\n"
        "import_callable('wave:open', 'MODEL')\n"
        "try:\n    import absent_thing\nexcept ModuleNotFoundError:\n    print('not found')\n"
    )
    write_module("absent_thing", "open('ran', 'w').close()")
    write_module("chunk", "open('ran', 'w').close()")  # which wave may import
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "not found\n"
    assert not Path("ran").exists()
