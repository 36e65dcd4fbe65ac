"""Training that faults interrupt: docs/faults.md, Training and resuming. Signals: tests/runs/test_resume.py."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lrexport.artifacts import files, tensors
from lrexport.cli.main import run
from lrexport.errors import DeviceError
from lrexport.runs.record import load_record
from tests.forked import Forked
from tests.hostile.support import DATA, Command, write_module

TRAIN = ("train", "tiny:make", "--data", "users:fitting", "-o", "out", "--device", "cpu", "--precision", "float32")
STAGES = ("--dense-epochs", "2", "--svd-epochs", "2", "--batch-size", "6")
FULL = re.compile(r"disk full while writing \S+: [\d.,]+ \w+ needed, [\d.,]+ \w+ free")


@pytest.fixture(autouse=True)
def _data(here: Path) -> None:
    write_module("users", DATA)


def checkpoints(stage: str, folder: Path = Path("out")) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "checkpoint").glob(f"{stage}-[0-9]*")}


def leftovers(folder: Path = Path("out")) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def test_a_loss_that_is_nan_keeps_the_last_good_state_and_goes_on_with_a_smaller_rate(lrexport: Command) -> None:
    diverged = lrexport(*TRAIN, *STAGES, "--lr", "1e30")
    assert diverged.code == 3
    assert re.search(r"the loss is (nan|inf) at step \d of epoch 1 \(svd, learning rate [\d.]+e\+\d+\)", diverged.err)
    assert "--resume --allow-changes" in diverged.err
    kept = tensors.unpacked(next(iter(checkpoints("svd").values())))[0]
    assert all(bool(value.isfinite().all()) for value in kept.values())
    refused = lrexport(*TRAIN, *STAGES, "--lr", "0.01", "--resume")
    assert refused.code == 2
    assert "lr was 1e+30, now 0.01" in refused.err
    again = lrexport(*TRAIN, *STAGES, "--lr", "0.01", "--resume", "--allow-changes")
    assert again.code == 0, again.err
    assert "dense training" not in again.err  # that stage was finished
    assert "SVD training: epoch 2/2" in again.err
    assert load_record(Path("out")).config["lr"] == 0.01


def test_whatever_fails_while_a_job_is_opened_the_folder_is_free_again(lrexport: Command) -> None:
    """In the same process, as a library's user or the next of these tests has it."""
    for name, error in (("runs.open.environment", RuntimeError("no such thing")), ("runs.open.Loggers", KeyError("x"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"lrexport.{name}", raising(error))
            assert lrexport(*TRAIN, *STAGES).code == 4
        assert not Path("out/.holder").exists()
    with pytest.MonkeyPatch.context() as patch:
        full_from(1, patch)  # the note of who holds it is what there is no room for
        stopped = lrexport(*TRAIN, *STAGES)
    assert stopped.code == 4
    assert FULL.search(stopped.err), stopped.err
    done = lrexport(*TRAIN, *STAGES)
    assert done.code == 0, done.err


def raising(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    return fail


def full_from(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the given synchronisation of a file on."""
    calls, really = iter(range(1, call)), os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_full_disk_keeps_the_checkpoint_before_and_goes_on_once_there_is_room(lrexport: Command) -> None:
    """Stubbed where files are synchronised, which every system has; for real below."""
    with pytest.MonkeyPatch.context() as patch:
        full_from(22, patch)  # two calls a file, the file's and its folder's, and one to name it in the mark before
        stopped = lrexport(*TRAIN, *STAGES)
    assert stopped.code == 4
    assert FULL.search(stopped.err), stopped.err
    assert "--resume" in stopped.err
    assert not leftovers()
    assert checkpoints("dense")
    assert lrexport(*TRAIN, *STAGES, "--resume").code == 0
    assert lrexport(*TRAIN[:4], "-o", "whole", *TRAIN[6:], *STAGES).code == 0
    assert Path("out/svd.safetensors").read_bytes() == Path("whole/svd.safetensors").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    """Take what room there is, to the last page."""
    with open(path, "ab", buffering=0) as stream:
        for size in (1 << 16, 1 << 12):
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))


def test_a_disk_that_really_fills_up_in_training(here: Path, small_disk: Path) -> None:
    command = [*TRAIN[:4], *TRAIN[6:], "--dense-epochs", "60", "--svd-epochs", "1", "--batch-size", "6"]
    out = small_disk / "run"
    stopped = Forked(here, *command, "-o", str(out))
    stopped.until("dense training: epoch 2/")
    fill(small_disk / "filler")
    assert stopped.wait() == 4, stopped.output
    assert FULL.search(stopped.output), stopped.output
    assert "Traceback" not in stopped.output
    assert not leftovers(out)
    kept = checkpoints("dense", out)
    assert kept
    (small_disk / "filler").unlink()
    again = Forked(here, *command, "-o", str(out), "--resume")
    assert again.wait() == 0, again.output
    first = int(re.findall(r"dense training: epoch (\d+)/", again.output)[0])
    assert first > 1  # not from the start
    whole = Forked(here, *command, "-o", "whole")
    assert whole.wait() == 0, whole.output
    assert (out / "svd.safetensors").read_bytes() == Path("whole/svd.safetensors").read_bytes()
    assert len((out / "log.jsonl").read_text().splitlines()) == len(Path("whole/log.jsonl").read_text().splitlines())


def test_a_checkpoint_folder_in_which_nothing_can_be_written_is_said_before_any_training(lrexport: Command) -> None:
    """As root nothing is forbidden, so the folder's place is taken instead; permissions are in test_folders.py."""
    Path("out").mkdir()
    Path("out/checkpoint").write_text("in the way")
    done = lrexport(*TRAIN, *STAGES)
    assert done.code == 2
    assert "out has files that lrexport did not write, under names that it uses: checkpoint" in done.err
    assert "epoch" not in done.err
    assert Path("out/checkpoint").read_text() == "in the way"


def test_memory_that_runs_out_names_the_batch_and_leaves_a_run_to_go_on_with(lrexport: Command) -> None:
    def out_of_memory(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", out_of_memory)
        done = lrexport(*TRAIN, *STAGES)
    assert done.code == 4
    assert "out of memory on cpu in dense training, with --batch-size 6" in done.err
    assert "--accumulate 2" in done.err
    assert not leftovers()
    again = lrexport(*TRAIN, *STAGES, "--accumulate", "2", "--resume", "--allow-changes")
    assert again.code == 0, again.err
    assert load_record(Path("out")).config["batch_size"] == 6


def test_a_line_of_the_log_for_which_there_is_no_room_is_taken_back() -> None:
    path = Path("log.jsonl")
    files.append_json_line(path, {"epoch": 1})

    class Half:
        def __enter__(self) -> Half:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def write(self, content: bytes) -> None:
            path.write_bytes(path.read_bytes() + content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", lambda *_, **__: Half())
        with pytest.raises(DeviceError, match="13 B needed"):
            files.append_json_line(path, {"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n'


def test_the_command_itself_ends_with_4_when_memory_runs_out_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lrexport.workflow.pipeline.train", out_of_memory)
    assert run(list(TRAIN)) == 4
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "who"), [(0, "lrexport: "), (3, "lrexport: process 3: ")])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            RuntimeError("pair.cc:553] Connection closed by peer [10.0.0.1]:29621. GLHF!"),
            4,
            "another process of this run has ended",
        ),
        (DeviceError("disk full"), 4, "disk full"),
    ],
)
def test_of_several_processes_it_is_said_which_one_failed_and_which_only_followed(
    error: Exception,
    code: int,
    words: str,
    rank: int,
    who: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("lrexport.workflow.pipeline.train", fail)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    assert run(list(TRAIN)) == code
    first, *_ = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert first.startswith(f"{who}{words}")
