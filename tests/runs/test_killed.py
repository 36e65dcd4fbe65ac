"""SIGKILL at each rename, removal and cut of ``compress``, ``onnx``, ``export_onnx``: docs/faults.md, Training and resuming.

A process is killed before the n-th of these calls, for n from 1 until it comes to its end: every state that a kill between
two of them can leave.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lrexport import load
from lrexport.artifacts import files
from lrexport.artifacts.run_files import EXPORTED
from lrexport.cli.main import run
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder
from tests.forked import Forked

NETWORK = """
import os, torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )

make.input_shape = (1, 8, 8)

def export():
    import lrexport
    lrexport.export_onnx(make(), "mine.onnx", make.input_shape)
"""
CALLS = "replace|rename|unlink|remove|rmdir|truncate"
COMPRESS = ("compress", "killed_network:make", "--macs", "0.6", "--device", "cpu")
STAGES = (
    "--data",
    "digits",
    "--dense-epochs",
    "1",
    "--svd-epochs",
    "1",
    "--fine-tune-epochs",
    "1",
    "--baseline-epochs",
    "1",
)
THEIRS = {"notes.txt": b"mine", ".run.json.abcdefgh.tmp": b"mine", ".export-settings/model.onnx": b"mine"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a run, the folder ``run``, and ``exported``, which was exported, too."""
    root = folder_with(tmp_path_factory, killed_network=NETWORK)
    with inside_folder(root):
        assert run([*COMPRESS, "-o", "run"]) == 0
        shutil.copytree("run", "exported")
        assert run(["onnx", "exported", "--rounds", "0"]) == 0
        yield root


def begin(folder: Path, base: str | None, with_theirs: bool = True) -> Path:
    """The folder ``work``: a copy of ``base``, with files of somebody else's."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder / base, work) if base else work.mkdir()
    for name, content in THEIRS.items() if with_theirs else ():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    return work


def kills(
    folder: Path, base: str | None, command: tuple[str, ...], moments: Iterator[int] | None, check: Callable[[Path], None]
) -> int:
    """How many moments there were at which the command was killed, or of ``moments`` those; ``check`` has what was left."""
    count = 0
    for call in moments or iter(range(1, 1000)):
        with_theirs = base is not None  # else the names of the first run's would be refused
        work = begin(folder, base, with_theirs)
        done = Forked(folder, *command, die_at=(CALLS, call))
        code = done.wait()
        if code == 0:
            break
        count += 1
        assert code == -signal.SIGKILL, done.output
        check(work)
        again = Forked(folder, *command)
        assert again.wait() == 0, (call, again.output)
        left = [path.name for path in work.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".export-")]
        assert sorted(left) == sorted([".run.json.abcdefgh.tmp", ".export-settings"] if with_theirs else []), call
        for name, content in THEIRS.items() if with_theirs else ():
            assert (work / name).read_bytes() == content
        assert not (work / ".holder").exists()
        record = load_record(work)
        for name in record.files:
            record.check(work, name)
    return count


def whole_or_gone(work: Path) -> None:
    """The run loads, and what its record says was exported is what lies there."""
    load(work, trust_code=True)
    record = load_record(work)
    for name in {*EXPORTED} & {*record.files}:
        record.check(work, name)


def nothing_of_the_network_lost(work: Path) -> None:
    """Until the new network is there with its record the dense one is what it was."""
    record = load_record(work)
    record.check(work, "dense.safetensors")


def fresh(work: Path) -> None: ...


CASES = {
    "compress": (None, (*COMPRESS, "-o", "work", "--resume"), fresh),
    "compress with training": (None, (*COMPRESS, *STAGES, "-o", "work", "--resume"), fresh),
    "compress again in its place": ("exported", ("compress", "work", "--macs", "0.4"), nothing_of_the_network_lost),
    "onnx": ("run", ("onnx", "work", "--rounds", "0"), whole_or_gone),
    "onnx over an earlier export": ("exported", ("onnx", "work", "--rounds", "0", "--opset", "20"), whole_or_gone),
}


@pytest.mark.parametrize("case", ["compress", pytest.param("onnx over an earlier export", marks=pytest.mark.slow)])
def test_a_kill_at_some_renames_loses_nothing(folder: Path, case: str) -> None:
    kills(folder, *CASES[case][:2], iter((2, 6)), CASES[case][2])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_every_rename_loses_nothing(folder: Path, case: str) -> None:
    count = kills(folder, *CASES[case][:2], None, CASES[case][2])
    assert count > 5
    print(f"{case}: killed at {count} moments")


def test_export_onnx_that_is_killed_keeps_the_earlier_file(folder: Path) -> None:
    mine = folder / "mine.onnx"
    mine.write_bytes(b"the earlier one")
    before = {path.name for path in folder.iterdir()}
    pid = os.fork()
    if pid == 0:  # no test framework in the child, and no way back into it
        try:
            _export_and_die(folder)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert mine.read_bytes() == b"the earlier one"
    others = {path.name for path in folder.iterdir()} - before
    assert all(name.startswith(".mine.onnx.") and name.endswith(".tmp") for name in others)


def _export_and_die(folder: Path) -> None:
    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = die  # type: ignore[assignment]  # this process has a moment to live
    files.write_bytes(folder / "mine.onnx", b"the new one")
