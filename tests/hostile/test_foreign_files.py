"""Files of others in and around the folders that lrexport writes in: docs/faults.md, Folders."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrexport.artifacts.run_files import LOGS, MARK, OF_A_RUN, OF_A_SWEEP
from lrexport.cli.main import run
from tests.folders import folder_with, inside_folder
from tests.hostile.support import DATA, TINY

_CPU = ("--device", "cpu")
_FREE = ("--svd-epochs", "0", "--fine-tune-epochs", "0")
COMMANDS = (
    ("compress", "tiny:make", "--macs", "0.6", "-o", ".", *_CPU),
    ("compress", "tiny:make", "--macs", "0.6", "-o", ".", "--resume", *_CPU),
    ("compress", "tiny:make", "--macs", "0.6", "-o", "new", "--json", "new.json", *_CPU),
    ("compress", ".", "--macs", "0.5"),
    ("compress", ".", "--macs", "0.5", "-o", "new"),
    ("compress", "tiny:make", "--macs", "0.6", "--dry-run", "--json", "new.json"),
    ("train", "tiny:make", "--data", "users:fitting", "--dense-epochs", "0", "--svd-epochs", "1", "-o", ".", *_CPU),
    ("onnx", ".", "--rounds", "0"),
    ("onnx", ".", "--rounds", "0", "--ort"),
    ("sweep", "tiny:make", "--data", "users:fitting", "--dense-epochs", "0", *_FREE, "--trials", "1", "-o", ".", *_CPU),
    ("report", "."),
    ("report", ".", "-o", "new.html"),
    ("report", ".", "-o", "new.md"),
    ("inspect", ".", "--json", "new.json"),
    ("check", ".", "--json", "new.json", "--markdown", "new.md", "--junit", "new.xml", "--history", "new2.json"),
    ("check", ".", "--update-baseline"),
    ("bench", ".", "--rounds", "10", "--json", "new.json"),
)
NAMES = (
    *(*OF_A_RUN, *OF_A_SWEEP, MARK, LOGS),
    *(".export-settings", ".export-a1b2c3_d", ".run.json.abcdefgh.tmp", f".{MARK}.0123456789abcdef.tmp"),
    *("checkpoint/best.safetensors", "checkpoint/state.json", "checkpoint/pruned.safetensors"),
    *("checkpoint/svd-0001-0000003.0123456789abcdef.safetensors", "checkpoint/.state.json.abcdefgh.tmp"),
    *("logs/mlflow.id", "trials/0000/run.json", "trials/0000/checkpoint/mine.pt", "stages/mine.txt", ".locks/claim.lock"),
    *("report.html", "lrexport-baseline.json", "sweep.db-journal", "weights/model.safetensors", "notes.txt"),
)
CONTENTS = (b"weeks of work", b"", b"{}", b"[]", b'{"files": {}}', b'{"asked": 1}', b"process 1", b"\x00" * 40)


@dataclass(frozen=True)
class Foreign:
    """Something of the user's at ``name`` below the folder: a file, a folder, a FIFO, or a link."""

    name: str
    kind: str
    content: bytes


KINDS = ("file", "file", "file", "folder", "link to file", "link to folder", "link to nothing", "hard link", "FIFO")
foreign = st.builds(Foreign, st.sampled_from(NAMES), st.sampled_from(KINDS), st.sampled_from(CONTENTS))


def put(folder: Path, thing: Foreign) -> None:
    """Where nothing is at that name yet, nor a file where a folder would have to be."""
    path = folder / thing.name
    if os.path.lexists(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return
    if path.parent.resolve() != (folder.resolve() / thing.name).parent:  # through a link that was put there before
        return
    victims = folder.parent / "victims"
    if thing.kind == "file":
        path.write_bytes(thing.content)
    elif thing.kind == "folder":
        path.mkdir()
        (path / "thesis.doc").write_bytes(thing.content)
    elif thing.kind == "FIFO":
        os.mkfifo(path)
    elif thing.kind == "hard link":
        os.link(victims / "thesis.doc", path)
    else:
        path.symlink_to(
            victims / {"link to file": "thesis.doc", "link to folder": "notes", "link to nothing": "x"}[thing.kind]
        )


def state(root: Path) -> dict[str, tuple[int, str | bytes]]:
    """Kind and content of all below, links unfollowed."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        content: str | bytes = b""
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(root))] = stat.S_IFMT(mode), content
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders to begin with, in which nothing is foreign: empty, a run, and one that was exported."""
    root = folder_with(tmp_path_factory, tiny=TINY, users=DATA)
    with inside_folder(root):
        assert run(["compress", "tiny:make", "--macs", "0.6", "-o", "a run", *_CPU]) == 0
        shutil.copytree("a run", "an exported run")
        assert run(["onnx", "an exported run", "--rounds", "0"]) == 0
        shutil.copytree("an exported run", "an unmarked run")  # of an lrexport that left no mark
        (Path("an unmarked run") / MARK).unlink()
        Path("nothing").mkdir()
        yield root


def leaves_alone(folders: Path, base: str, things: list[Foreign], commands: list[tuple[str, ...]]) -> None:
    """Run the commands inside of a folder with the things in it, and compare every byte that is not lrexport's."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        root = Path(name)
        folder = root / "project"
        shutil.copytree(folders / base, folder)
        own = {*state(root)}
        (root / "victims" / "notes").mkdir(parents=True)
        (root / "victims" / "notes" / "a.txt").write_text("a")
        (root / "victims" / "thesis.doc").write_text("years of work")
        for thing in things:
            put(folder, thing)
        theirs = {path: content for path, content in state(root).items() if path not in own}
        patch.chdir(folder)
        for command in commands:
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = run([*command])
            assert code in (0, 1, 2, 3, 4), said.getvalue()
            assert "unexpected" not in said.getvalue(), said.getvalue()
            now = state(root)
            changed = [path for path, content in theirs.items() if now.get(path) != content]
            assert not changed, (base, command, code, said.getvalue(), changed)


BASES = ("nothing", "nothing", "a run", "an exported run", "an unmarked run")
examples = given(
    st.sampled_from(BASES),
    st.lists(foreign, min_size=1, max_size=6),
    st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=2),
)
how = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], derandomize=True
)


@settings(how, max_examples=12)
@examples
def test_no_command_changes_a_byte_that_lrexport_did_not_write(
    folders: Path, base: str, things: list[Foreign], commands: list[tuple[str, ...]]
) -> None:
    leaves_alone(folders, base, things, commands)


@pytest.mark.slow
@settings(how, max_examples=1500)
@examples
def test_no_command_changes_a_byte_that_lrexport_did_not_write_however_long_it_is_tried(
    folders: Path, base: str, things: list[Foreign], commands: list[tuple[str, ...]]
) -> None:
    leaves_alone(folders, base, things, commands)


@pytest.mark.parametrize("base", ["nothing", "a run", "an exported run", "an unmarked run"])
@pytest.mark.parametrize("kind", sorted({*KINDS}))
def test_every_name_taken_at_once_is_refused_and_left_as_it_is(folders: Path, base: str, kind: str) -> None:
    things = [Foreign(name, kind, b"mine") for name in NAMES]
    commands = [COMMANDS[0], COMMANDS[3], COMMANDS[7], COMMANDS[10]]
    leaves_alone(folders, base, things, commands)
