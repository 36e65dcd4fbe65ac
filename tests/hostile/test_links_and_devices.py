"""Links in runs; devices, FIFOs and sockets as inputs and outputs: docs/faults.md, Folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from lrexport import InputError, load
from lrexport.artifacts import mark, run_folder
from lrexport.artifacts.run_files import MARK
from tests.hostile.support import Command, listing


@pytest.mark.parametrize(
    "name", ["checkpoint", "log.jsonl", "model.safetensors", "run.json", ".holder", "spectra.json", MARK]
)
def test_a_link_in_a_run_is_named_and_what_it_points_to_stays(lrexport: Command, finished: Path, name: str) -> None:
    victims = Path("victims")
    victims.mkdir()
    if (finished / name).exists():
        shutil.move(finished / name, victims / name)
    elif name == "checkpoint":
        (victims / name).mkdir()
        (victims / name / "thesis.doc").write_text("years of work")
    else:
        (victims / name).write_text("years of work")
    (finished / name).symlink_to(Path("..") / "victims" / name)
    before = listing(victims)
    done = lrexport("compress", finished, "--macs", "0.4")
    assert done.code == 3
    assert f"run/{name} is " in done.err
    assert listing(victims) == before
    assert (finished / name).is_symlink()


def test_nothing_is_read_through_a_link_in_a_run(finished: Path) -> None:
    shutil.move(finished / "model.safetensors", "elsewhere")
    (finished / "model.safetensors").symlink_to("../elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        load(finished, trust_code=True)


def test_a_log_that_has_another_name_elsewhere_is_added_to_here_alone(lrexport: Command, finished: Path) -> None:
    os.link(finished / "log.jsonl", "backup.jsonl")
    before = Path("backup.jsonl").read_bytes()
    run_folder.append_json_line(finished, "log.jsonl", {"event": "x"})
    assert Path("backup.jsonl").read_bytes() == before
    assert (finished / "log.jsonl").read_bytes() == before + b'{"event": "x"}\n'


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
def test_what_is_no_plain_file_is_neither_written_nor_waited_for(lrexport: Command, finished: Path, kind: str) -> None:
    path = Path("special")
    held = socket.socket(socket.AF_UNIX)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        held.bind(str(path))
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    for command in (
        ("inspect", finished, "--json", path),
        ("compress", "tiny:make", "--macs", "0.6", "-o", "out", "--json", path),
        ("report", finished, "--format", "html", "-o", path),
        ("check", finished, "--junit", path),
        ("check", finished, "--markdown", path),
        ("check", finished, "--history", path),
        ("inspect", path),
        ("compress", "tiny:make", "--macs", "0.6", "-o", "out", "--weights", path),
        ("compress", "tiny:make", "--plan", path, "-o", "out"),
        ("bench", path),
        ("check", finished, "--baseline", path),
        ("check", finished, "--latency", path),
        ("report", path),
        ("--config", path, "inspect", finished),
        ("compress", "tiny:make", "--macs", "0.6", "-o", "out", "--recipe", path),
    ):
        done = lrexport(*command)
        assert done.code in ((2, 3) if "--recipe" in command else (3,)), (command, done.err)
        assert "special" in done.err
    assert path.lstat() == before
    assert not Path("out").exists()
    held.close()


def test_a_fifo_for_a_file_of_a_run_is_not_waited_for(lrexport: Command, finished: Path) -> None:
    for name in ("model.safetensors", "run.json", "log.jsonl"):
        kept = (finished / name).read_bytes()
        (finished / name).unlink()
        os.mkfifo(finished / name)
        done = lrexport("compress", finished, "--macs", "0.4")
        assert done.code == 3, done.err
        assert f"{name} is a FIFO" in done.err
        (finished / name).unlink()
        (finished / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null"])
def test_a_stream_by_its_name_is_refused_with_what_to_write_instead(lrexport: Command, finished: Path, name: str) -> None:
    done = lrexport("inspect", finished, "--json", name)
    assert done.code == 3
    assert name in done.err
    assert ("Write to stdout with -." in done.err) == (name != "/dev/null")


def test_an_output_that_is_a_link_is_written_where_it_points_and_stays_a_link(lrexport: Command, finished: Path) -> None:
    Path("site").mkdir()
    Path("latest.json").symlink_to("site/run.json")
    assert lrexport("inspect", finished, "--json", "latest.json").code == 0
    assert os.readlink("latest.json") == "site/run.json"
    assert b'"schema_version"' in Path("site/run.json").read_bytes()
    Path("round").symlink_to("round")
    done = lrexport("inspect", finished, "--json", "round")
    assert done.code == 4
    assert "its links form a cycle" in done.err


def test_a_fifo_among_the_images_is_not_waited_for(here: Path) -> None:
    from lrexport.data.reading import try_image

    os.mkfifo("image.png")
    image = try_image(Path("image.png"))
    assert isinstance(image, InputError)
    assert "image.png is a FIFO" in image.message


def test_a_folder_of_another_lrexport_is_known_by_its_record_alone(finished: Path) -> None:
    """Nor is a checkpoint lrexport's that is not what its name says."""
    (finished / MARK).unlink()
    (finished / "checkpoint").mkdir()
    (finished / "model.onnx").write_bytes(b"mine")
    content = b"a checkpoint"
    good = f"checkpoint/svd-done.{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    (finished / good).write_bytes(content)
    (finished / "checkpoint" / "svd-done.0123456789abcdef.safetensors").write_bytes(content)
    known = mark.known(finished)
    assert known is not None
    assert {"run.json", "model.safetensors", "log.jsonl", "checkpoint", good} <= known.names
    assert {*run_folder.remove(finished, *run_folder.made_in(finished, "checkpoint"), "model.onnx")} == {good}
    assert (finished / "model.onnx").read_bytes() == b"mine"
    assert (finished / "checkpoint" / "svd-done.0123456789abcdef.safetensors").read_bytes() == content


def test_a_page_of_somebody_elses_is_not_replaced_by_a_report_that_nobody_named(lrexport: Command, finished: Path) -> None:
    Path("report.html").write_text("<h1>My report</h1>")
    done = lrexport("report", finished)
    assert done.code == 2
    assert "report.html exists and was not written by lrexport" in done.err
    assert Path("report.html").read_text() == "<h1>My report</h1>"
    Path("report.html").unlink()
    assert lrexport("report", finished).code == 0
    assert lrexport("report", finished).code == 0  # its own page it replaces


def test_what_was_removed_is_not_lrexports_any_more(here: Path) -> None:
    folder = Path("run")
    folder.mkdir()
    run_folder.write_bytes(folder, "model.onnx", b"made")
    assert run_folder.remove(folder, "model.onnx", "dense.onnx") == ["model.onnx"]
    (folder / "model.onnx").write_bytes(b"mine")
    assert run_folder.remove(folder, "model.onnx") == []
    assert (folder / "model.onnx").read_bytes() == b"mine"


def test_half_a_line_in_a_mark_loses_no_other(here: Path) -> None:
    folder = Path("run")
    folder.mkdir()
    run_folder.write_bytes(folder, "model.onnx", b"made")
    with open(folder / MARK, "a") as stream:
        stream.write('{"made": "dense.on')  # as a crash leaves it
    run_folder.write_bytes(folder, "dense.onnx", b"made")
    known = mark.known(folder)
    assert known is not None
    assert known.names == {"model.onnx", "dense.onnx"}


def test_a_mark_names_nothing_outside_of_its_folder(here: Path) -> None:
    folder = Path("run")
    folder.mkdir()
    lines = [
        '{"lrexport": 1}',
        *(f'{{"made": "{name}"}}' for name in ("../thesis.doc", "/etc/passwd", "a/b/c", "", "run.json")),
    ]
    (folder / MARK).write_text("\n".join(lines) + "\n")
    known = mark.known(folder)
    assert known is not None
    assert known.names == {"run.json"}


def test_a_demo_begun_again_leaves_what_is_not_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrexport.artifacts.run_lock import remove_run

    demo = Path("lrexport-demo")
    demo.mkdir()
    run_folder.write_bytes(demo, "run.json", b"{}")
    (demo / "notes.txt").write_text("mine")
    remove_run(demo)
    assert listing(demo) == {"notes.txt": b"mine"}
    (demo / "notes.txt").unlink()
    run_folder.write_bytes(demo, "run.json", b"{}")
    remove_run(demo)
    assert not demo.exists()


def test_a_refused_command_leaves_no_line_in_a_mark(lrexport: Command, finished: Path) -> None:
    before = listing(finished)
    assert lrexport("compress", finished, "--macs", "0.0001").code == 2
    assert (finished / MARK).read_bytes() == before[MARK]


def test_a_mark_of_somebody_else_names_only_what_lrexport_calls_its_files(lrexport: Command, here: Path) -> None:
    (here / "checkpoint").mkdir()
    theirs = ["checkpoint/best.pt", "checkpoint/dense-best.pt", "notes.txt", ".git", "logs/mine.txt", "trials/0000"]
    (here / "checkpoint" / "best.pt").write_bytes(b"weeks of work")
    (here / "notes.txt").write_bytes(b"mine")
    ours = ["checkpoint", "checkpoint/state.json", "checkpoint/svd-best.0123456789abcdef.safetensors", "logs/mlflow.id"]
    names = [*theirs, *ours, "model.ort", "sweep.db", "trials"]
    (here / MARK).write_text("".join(f"{json.dumps(line)}\n" for line in ({"lrexport": 1}, *({"made": n} for n in names))))
    known = mark.known(here)
    assert known is not None
    assert known.names == {*ours, "model.ort", "sweep.db", "trials"}
    assert lrexport("compress", "tiny:make", "--macs", "0.6", "-o", ".").code == 0
    assert (here / "checkpoint" / "best.pt").read_bytes() == b"weeks of work"
    assert (here / "notes.txt").read_bytes() == b"mine"


def test_a_mark_longer_than_any_run_has_is_refused_and_one_that_grows_is_shortened(
    lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark, "_MANY_BYTES", 2000)
    for _ in range(100):
        run_folder.write_bytes(finished, "model.ort", b"made")
        assert run_folder.remove(finished, "model.ort") == ["model.ort"]
    assert (finished / MARK).stat().st_size < 3000
    known = mark.known(finished)
    assert known is not None
    assert "run.json" in known.names
    with open(finished / MARK, "a") as stream:
        stream.write('{"made": "a"}\n' * 200_000)
    before = listing(finished)
    result = lrexport("onnx", finished)
    assert result.code == 3
    assert "expected at most 2,097,152" in result.err
    assert listing(finished) == before
